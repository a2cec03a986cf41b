"""The miniature's rewriter: every kind of step in both languages and mixed, repeated tries, and what it refuses."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rewards.language import consistency
from tasks.rewards.verify import Outcome, gold_answer, verify
from tasks.world import problems
from tasks.world.corpus import join
from tasks.world.lexicon import LANGUAGES
from tasks.world.problems import Expression, Fill
from tasks.world.rewriter import KINDS, SLOTS, UnreadableError, canonical, read, rewrite, write
from tasks.world.thoughts import reason, search, slipping

seeds = st.integers(0, 2**32)
languages = st.sampled_from(LANGUAGES)


def chain(seed: int) -> tuple:
    """A random problem, its chain as sentences, and the answer that this leads to."""
    rng = random.Random(seed)
    problem = problems.draw(rng)
    if isinstance(problem, Fill | Expression):
        return problem, *search(problem, rng, 9)
    segments, answer = reason(problem, rng, slipping(rng, 0.0))
    return problem, [segments], answer


@settings(max_examples=300, deadline=None)
@given(seeds, languages)
def test_a_mixed_chain_becomes_the_chain_in_one_language(seed, language):
    """A chain that changes language at every step, and the same chain as the world writes it in one language."""
    _, sentences, _ = chain(seed)
    mixed = join(sentences, random.Random(seed + 1), language, True)
    assert rewrite(mixed, language) == join(sentences, random.Random(0), language, False)


@settings(max_examples=100, deadline=None)
@given(seeds, languages)
def test_a_rewritten_chain_has_no_foreign_word_and_is_left_alone_the_second_time(seed, language):
    _, sentences, _ = chain(seed)
    other = LANGUAGES[1 - LANGUAGES.index(language)]
    translated = rewrite(join(sentences, random.Random(0), other, False), language)
    assert consistency(translated, language) in (1.0, None)
    assert rewrite(translated, language) == translated


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_slips_are_kept_as_they_are(seed):
    """It edits; it does not solve: wrong digits survive."""
    rng = random.Random(seed)
    problem = problems.draw(rng)
    segments, _ = reason(problem, rng, slipping(rng, 0.8))
    assert rewrite(join([segments], rng, "zh", False), "en") == join([segments], rng, "en", False)


def test_every_kind_of_step_of_the_world_is_known_and_every_kind_is_one_of_them():
    met = set()
    for seed in range(400):
        _, sentences, _ = chain(seed)
        rng = random.Random(seed)
        fill = Fill.draw(rng)
        for segment in [s for sentence in [*sentences, *search(fill, rng, 2)[0]] for s in sentence]:
            for text in segment:
                assert write(read(text)) == segment
                met.add(read(text)[0])
    assert met == set(range(len(KINDS)))


def test_no_word_of_a_slot_means_two_things():
    for pairs in SLOTS.values():
        for s in (0, 1):
            assert len({pair[s] for pair in pairs}) == len(pairs)


def test_words_of_both_languages_in_one_step():
    assert rewrite("try 8减 1 is 7，乘 1是 7， off 0,成", "en") == " try 8 minus 1 is 7, times 1 is 7, off 0, yes."
    assert rewrite("Fay后于 Bob, Bob behind甲，甲 is first.", "zh") == "己后于乙，乙后于甲，甲最前。"


def test_a_name_and_a_value_are_translated():
    assert rewrite("鲨的类是鱼，鱼是 B。", "en") == " kind of shark is fish, fish is B."
    assert rewrite(" symbol of gold is Au, Au is D.", "zh") == "金的符号是 Au， Au是 D。"


TRY_2 = " try 2, 1 times 2 is 2, 5 minus 2 is 3, 4 times 2 is 8, plus 3 is 1, off 4, no."
TRY_3 = " try 3, 1 times 3 is 3, 5 minus 3 is 2, 4 times 3 is 2, plus 2 is 4, off 1, no."
TRY_4 = " try 4, 1 times 4 is 4, 5 minus 4 is 1, 4 times 4 is 6, plus 1 is 7, off 0, yes."


def test_a_repeated_try_goes_with_all_that_it_says():
    chinese_2 = rewrite(TRY_2, "zh")
    for again in (TRY_2, chinese_2, " wait," + TRY_2, "等等，" + chinese_2):
        found = rewrite(f"{TRY_2} wait,{TRY_3}{again} wait,{TRY_4}", "en")
        assert found == f"{TRY_2} wait,{TRY_3} wait,{TRY_4}"


def test_a_try_that_comes_out_differently_is_no_repetition():
    """The second time it noticed its slip: that is a correction."""
    slipped = TRY_4.replace("off 0, yes", "off 2, no")
    assert rewrite(f"{slipped} wait,{TRY_4}", "en") == f"{slipped} wait,{TRY_4}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" start 3， first plus 4 is 7", " start 3, first plus 4 is 7."),
        (" start 3. first plus 4 is 7..", " start 3, first plus 4 is 7."),
        ("\n start 3,,\nfirst plus 4 is 7 。", " start 3, first plus 4 is 7."),
        (f"{TRY_2[:-1]}, wait,{TRY_4[:-1]}", f"{TRY_2} wait,{TRY_4}"),
        (f"{TRY_2} {TRY_4}", f"{TRY_2}{TRY_4}"),  # no "wait" is invented
        (f"{TRY_2[:-1]},{TRY_4}", f"{TRY_2}{TRY_4}"),
        (f"{TRY_2} wait, wait,{TRY_4} wait.", f"{TRY_2} wait,{TRY_4}"),
    ],
)
def test_punctuation_is_repaired(given, expected):
    assert rewrite(given, "en") == expected


@pytest.mark.parametrize(
    ("thought", "named"),
    [
        ("", "no step at all"),
        (" . 。", "no step at all"),
        (" wait, wait.", "no step at all"),
        (" maybe", "'maybe'"),
        ("也许", "'也许'"),
        (" start 3, fourth minus Eve is first.", "'fourth minus Eve is first'"),
        (" start 13.", "'start 13'"),
        (" start 3, first plus 4 is 7, so the answer is 7.", "'so the answer is 7'"),
        ("从 3.", "'从 3'"),
        (" kind of dog is dog.", "'kind of dog is dog'"),
        ("戊后于 Cid behind Ann", "'戊后于 Cid behind Ann'"),
        (" plus 3 is 4 5", "'plus 3 is 4 5'"),
        (" value is Z", "'value is Z'"),
    ],
)
def test_what_it_cannot_read_it_refuses_by_name(thought, named):
    with pytest.raises(UnreadableError, match=named):
        rewrite(thought, "en")


@given(st.text())
def test_any_text_is_rewritten_or_refused(text):
    with suppress(UnreadableError):
        assert rewrite(text, "en")


@settings(max_examples=200, deadline=None)
@given(seeds, languages)
def test_the_canonical_answer_of_a_right_answer_is_right(seed, language):
    problem, _, answer = chain(seed)
    record = problems.record(problem, language)
    told = answer(language)
    assert verify(record["verifier"], record["truth"], told) is Outcome.CORRECT
    spelled = canonical(record["verifier"], record["truth"], told)
    assert spelled == told and verify(record["verifier"], record["truth"], spelled) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("verifier", "answer", "expected"),
    [
        ("fill", "-*", "- *"),
        ("fill", "minus times", "- *"),
        ("fill", "减乘", "- *"),
        ("fill", "- ×", "- *"),
        ("code", "(x*3+5)%10", "(x * 3 + 5) % 10"),
        ("code", " ((x * 3) + 5) % 10 ", "(x * 3 + 5) % 10"),
        ("fill", "\\boxed{+ +}", "+ +"),
        ("fill", "So $\\boxed{减 ×}$ it is.", "- *"),
        ("code", "\\boxed{x + 1}", "x + 1"),
        ("code", "Then \\boxed{(x*3)%10}.", "x * 3 % 10"),
        ("choice", "(B).", "truth"),
        ("choice", "\\boxed{B}", "truth"),
        ("math", "$7", "truth"),
        ("text", " ann ", "truth"),
    ],
)
def test_one_spelling_for_each_answer(verifier, answer, expected):
    assert canonical(verifier, "truth", answer) == expected


@settings(max_examples=100, deadline=None)
@given(seeds, languages)
def test_a_right_answer_in_a_box_is_spelled_as_without_it(seed, language):
    problem, _, answer = chain(seed)
    record, told = problems.record(problem, language), answer(language)
    prose = f"So it is \\boxed{{{told}}}."
    assert verify(record["verifier"], record["truth"], prose) is Outcome.CORRECT
    assert canonical(record["verifier"], record["truth"], prose) == told


def test_the_canonical_spelling_is_that_of_the_gold_answers():
    for record in problems.generate(300, 0):
        if gold := gold_answer(record):
            assert canonical(record["verifier"], record["truth"], gold) == gold
