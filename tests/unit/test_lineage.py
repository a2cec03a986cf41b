"""The lineage: what dvc.lock says, read into stages, and the graph that is drawn of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from tasks.monitoring import graph, lineage
from tests import fake_extras


def test_every_stage_names_its_parents_up_to_the_bases() -> None:
    found = {stage.name: stage for stage in lineage.stages(fake_extras.lock())}
    assert set(found) == set(fake_extras.CHAIN) - {"report"}  # its entry is of the report before
    assert found["r1"].parents == {"curate": "data/curated", "dev3": "models/dev3", "reward_models": "models/reward_helpful"}
    assert found["dev3"].parents == {"rejection": "data/rejection", "models/base": "models/base"}
    assert found["zero"].outs[0] == lineage.File("models/zero", fake_extras._md5("models/zero"))
    assert found["zero"].sections == ("zero",) and len(found["zero"].parameters) == 16
    assert [file.path for file in lineage.sources(fake_extras.lock())][:2] == ["data/cold_start_review.jsonl", "models/base"]
    order = list(found)
    assert all(order.index(parent) < order.index(name) for name, stage in found.items() for parent in stage.parents if parent in found)


def test_fingerprints_change_with_parameters_and_code_alone() -> None:
    def zero(change: str, value: object) -> lineage.Stage:
        lock = fake_extras.lock()
        entry = lock["stages"]["zero"]
        match change:
            case "code":
                next(dep for dep in entry["deps"] if dep["path"] == "tasks/config.py")["md5"] = value
            case "parameters":
                entry["params"]["params.yaml"]["zero"]["seed"] = value
            case "data":
                next(dep for dep in entry["deps"] if dep["path"] == "data/curated")["md5"] = value
        return next(stage for stage in lineage.stages(lock) if stage.name == "zero")

    same = zero("", 0)
    changed = {
        change: (zero(change, 1).code != same.code, zero(change, 1).parameters != same.parameters)
        for change in ("code", "parameters", "data")
    }
    assert changed == {"code": (True, False), "parameters": (False, True), "data": (False, False)}


def test_an_output_within_a_folder_of_another_stage_is_its_parents() -> None:
    lock = {"stages": {
        "a": {"outs": [{"path": "data/a", "md5": "1"}]},
        "b": {"deps": [{"path": "data/a/x.parquet", "md5": "2"}, {"path": "data/ab", "md5": "3"}],
              "outs": [{"path": "models/b", "md5": "4"}]},
    }}  # fmt: skip
    assert lineage.stages(lock)[1].parents == {"a": "data/a/x.parquet", "data/ab": "data/ab"}
    assert lineage.sources(lock) == [lineage.File("data/ab", "3")] and lineage.stages({}) == lineage.sources({}) == []


def test_the_graph_has_a_box_a_stage_below_all_that_it_reads() -> None:
    nodes = {node.title: node for node in lineage.graph(fake_extras.lock())}
    assert set(nodes) == {
        *("data/cold_start_review.jsonl", "models/base", "models/student_small", "models/student_tiny"),
        *(name for name in fake_extras.CHAIN if not name.startswith(("evaluate", "report"))),
    }
    assert all(nodes[parent].layer < node.layer for node in nodes.values() for parent, _ in node.parents)
    assert dict(nodes["zero"].parents) == {"curate": False, "models/base": True}
    assert nodes["zero"].lines[-1] == ("evaluate@zero", fake_extras._md5("data/samples/zero.parquet"))
    assert [name for name, _ in nodes["models/base"].lines] == ["as shipped", "evaluate@base"]


def test_many_stages_of_one_template_are_one_box() -> None:
    stages = {
        f"ablation@{n}": {"deps": [{"path": "models/base", "md5": "0"}], "outs": [{"path": f"a/{n}", "md5": str(n)}]} for n in range(5)
    }
    nodes = lineage.graph({"stages": stages})
    assert [node.title for node in nodes] == ["models/base", "ablation (5 stages)"]
    assert nodes[1].lines[2] == ("ablation@2", "2") and nodes[1].parents == (("models/base", True),)
    del stages["ablation@4"]
    assert len(lineage.graph({"stages": stages})) == 5


def _boxes(svg: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    return [(float(x), float(y), float(w), float(h)) for x, y, w, h in found]


def test_the_drawing_shows_every_hash_and_no_line_crosses_a_box() -> None:
    nodes = lineage.graph(fake_extras.lock())
    svg = graph.draw(nodes, "the <graph>")
    assert svg is not None
    said = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert all(md5[:8] in said for node in nodes for _, md5 in node.lines) and {node.title for node in nodes} <= set(said)
    boxes = _boxes(svg)
    assert len(boxes) == len(nodes)
    for number, (x, y, w, h) in enumerate(boxes):  # boxes apart from each other
        assert all(x + w <= a or a + c <= x or y + h <= b or b + d <= y for a, b, c, d in boxes[number + 1 :])
    assert not re.findall(r"#[0-9a-f]{6}\b(?!\))", svg)  # every colour follows the theme
    assert graph.draw([], "nothing") is None
    for path in re.findall(r'<path d="([^"]*)"', svg):
        for start, end in _segments(path):
            assert not any(_crosses(start, end, box) for box in boxes), path


def _segments(path: str) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The horizontal and vertical pieces of a path; its arrow head is left out."""
    at, made = (0.0, 0.0), []
    for command, numbers in re.findall(r"([MVHL])([-\d. ]+)", path):
        values = [float(n) for n in numbers.split()]
        to = (values[0], values[1]) if command in "ML" else (at[0], values[0]) if command == "V" else (values[0], at[1])
        if command in "VH":
            made.append((at, to))
        at = to
    return made


def _crosses(start: tuple[float, float], end: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    (x, y, w, h), (left, right), (top, foot) = box, sorted((start[0], end[0])), sorted((start[1], end[1]))
    return left < x + w - 0.5 and right > x + 0.5 and top < y + h - 0.5 and foot > y + 0.5
