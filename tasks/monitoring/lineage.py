"""Where everything comes from: the stages of dvc.lock with the hashes of what they read and wrote, up to the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.config import fingerprint

OWN = "report"  # its entry is of the report before this one
LEAVES = ("evaluate", "compare")  # they read models and metrics, and nothing trains on what they write
GROUPED = 4  # more stages than these of one template are one node of the graph


@dataclass(frozen=True)
class File:
    """A file or folder with DVC's hash of its content."""

    path: str
    md5: str


@dataclass(frozen=True)
class Stage:
    """A stage as it ran: what it wrote, the stages and sources that it read, and fingerprints of its parameters and its code."""

    name: str
    outs: tuple[File, ...]
    parents: dict[str, str]  # stage or source -> the path through which it is read
    parameters: str
    sections: tuple[str, ...]
    code: str


def _entries(lock: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in (lock.get("stages") or {}).items() if name != OWN}


def _files(entries: Any) -> tuple[File, ...]:
    return tuple(File(entry["path"], entry.get("md5", "")) for entry in entries or ())


def _is_code(path: str) -> bool:
    return path.endswith(".py") or path.startswith("tasks/")


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _sections(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the parameters of all files, without repetition."""
    return tuple(dict.fromkeys(key.split(".")[0] for keys in params.values() for key in keys))


def stages(lock: Mapping[str, Any]) -> list[Stage]:
    """The stages of dvc.lock but the report, each after those that it reads.

    Args:
        lock: dvc.lock, schema 2.0.
    """
    entries = _entries(lock)
    owners = {out.path: name for name, entry in entries.items() for out in _files(entry.get("outs"))}
    found = {name: _stage(name, entry, owners) for name, entry in entries.items()}
    return [found[name] for name in sorted(found, key=lambda name: (_depth(name, found), name))]


def _stage(name: str, entry: Mapping[str, Any], owners: Mapping[str, str]) -> Stage:
    read, params = _files(entry.get("deps")), entry.get("params") or {}
    parents: dict[str, str] = {}
    for file in (file for file in read if not _is_code(file.path)):
        owner = next((owners[out] for out in owners if _within(file.path, out)), file.path)
        if owner != name:
            parents.setdefault(owner, file.path)
    code = fingerprint(sorted((file.path, file.md5) for file in read if _is_code(file.path)))
    return Stage(name, _files(entry.get("outs")), parents, fingerprint(params), _sections(params), code)


def _depth(name: str, found: Mapping[str, Stage]) -> int:
    """Length of the longest way from a source."""
    parents = found[name].parents if name in found else {}
    return 1 + max((_depth(parent, found) for parent in parents), default=-1)


def sources(lock: Mapping[str, Any]) -> list[File]:
    """Data and models that stages read and none made: the bases, the reviews, your own files."""
    entries = _entries(lock)
    made = [out.path for entry in entries.values() for out in _files(entry.get("outs"))]
    read = [file for entry in entries.values() for file in _files(entry.get("deps"))]
    wild = [file for file in read if not _is_code(file.path) and not any(_within(file.path, out) for out in made)]
    return sorted(set(wild), key=lambda file: file.path)


@dataclass(frozen=True)
class Node:
    """A box of the graph: its title, lines of (what, hash), the nodes that it reads and its layer from the top."""

    title: str
    lines: tuple[tuple[str, str], ...]
    parents: tuple[tuple[str, bool], ...]  # title, whether it is a model that is read
    layer: int


def _short(path: str) -> str:
    return path.removeprefix("reports/metrics/").removeprefix("reports/")


def _template(name: str) -> str:
    return name.split("@")[0]


def _titles(drawn: list[Stage]) -> dict[str, str]:
    """The node of each stage: itself, or all stages of a template with more than GROUPED."""
    sizes: dict[str, int] = {}
    for stage in drawn:
        sizes[_template(stage.name)] = sizes.get(_template(stage.name), 0) + 1
    many = {name: f"{name} ({size} stages)" for name, size in sizes.items() if size > GROUPED}
    return {stage.name: many.get(_template(stage.name), stage.name) for stage in drawn}


def graph(lock: Mapping[str, Any]) -> list[Node]:
    """The nodes from the sources down: stages that make something others read; an evaluation is a line of the model that it measures."""
    all_stages, wild = stages(lock), sources(lock)
    drawn = [stage for stage in all_stages if _template(stage.name) not in LEAVES]
    titles = _titles(drawn)
    read = {parent for stage in drawn for parent in stage.parents}
    evaluated = _evaluations(all_stages)
    made = [Node(file.path, ((_kind(file.path), file.md5), *evaluated.get(file.path, ())), (), 0) for file in wild if file.path in read]
    for title in dict.fromkeys(titles.values()):
        made.append(_node(title, [stage for stage in drawn if titles[stage.name] == title], titles, made, evaluated))
    return made


def _kind(path: str) -> str:
    return "as shipped" if path.startswith("models/") else "in git"


def _evaluations(all_stages: list[Stage]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Stage or source of a model -> a line for each evaluation of it."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for stage in all_stages:
        owner = next((p for p, path in stage.parents.items() if path.startswith("models/")), None)
        if _template(stage.name) == "evaluate" and owner:
            found[owner] = (*found.get(owner, ()), (stage.name, stage.outs[-1].md5))
    return found


def _node(title: str, group: list[Stage], titles: Mapping[str, str], above: list[Node], evaluated: Mapping[str, Any]) -> Node:
    outs = [(_short(out.path), out.md5) for stage in group for out in stage.outs]
    lines = outs if len(group) == 1 else [(stage.name, stage.outs[-1].md5) for stage in group]
    lines += [line for stage in group for line in evaluated.get(stage.name, ())]
    layers = {node.title: node.layer for node in above}
    parents = {titles.get(p, p): path.startswith("models/") for stage in group for p, path in stage.parents.items()}
    known = tuple((parent, model) for parent, model in parents.items() if parent in layers)
    return Node(title, tuple(lines), known, 1 + max((layers[parent] for parent, _ in known), default=-1))
