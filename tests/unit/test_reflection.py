"""The ten reflective words: what counts, what does not, and what the decoder is forbidden to say."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tasks.monitoring.reflection import WORDS, counts, find, forbidden_sequences, has_wait
from tasks.world import tokenizer as world_tokenizer


def only(**expected: int) -> dict[str, int]:
    return dict.fromkeys(WORDS, 0) | expected


def test_the_papers_ten_words_in_its_order() -> None:
    assert WORDS == ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")


@pytest.mark.parametrize("word", WORDS)
def test_english_words_count_in_any_case_and_next_to_punctuation(word: str) -> None:
    assert counts(f"{word}, ({word.upper()}) -{word.capitalize()}. 等{word}等 {word}") == only(**{word: 5})


@pytest.mark.parametrize(
    "text",
    ["waiter waits await wait_2 waiting", "butter rebut", "errors checked checkers", "wrongly", "nocheck check1"],
)
def test_parts_of_other_english_words_do_not_count(text: str) -> None:
    assert counts(text) == only()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("等等，再试一次", only(wait=1, retry=1)),
        ("等一下！稍等。且慢", only(wait=3)),
        ("这是一个失误，我弄错了", only(mistake=2)),
        ("然而不行，不过可以", only(however=2)),
        ("但是不行，但可以", only(but=2)),
        ("错误：验证和检查，评估", only(error=1, verify=1, check=1, evaluate=1)),
        ("错了，不对", only(wrong=2)),
        ("否。等等试 3", only(wait=1)),
        ("7等等8 wait等等", only(wait=3)),
    ],
)
def test_chinese_counterparts(text: str, expected: dict[str, int]) -> None:
    assert counts(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "等于",
        "等级",
        "相等",
        "平等",
        "不但",
        "非但",
        "但凡",
        "只不过",
        "不过分",
        "对不对",
        "不对称",
        "不错了",
        "一等等级",
        "等下去不行",
    ],
)
def test_ordinary_chinese_words_do_not_count(text: str) -> None:
    assert counts(text) == only()


def test_the_longest_match_wins_so_nothing_counts_twice() -> None:
    assert counts("但是") == only(but=1)
    assert counts("弄错了") == only(mistake=1)
    assert counts("重新尝试") == only(retry=1)
    assert counts("等等等等") == only(wait=2)


def test_traditional_characters_count_like_simplified_ones() -> None:
    assert counts("錯誤，不對，檢查，驗證，評估，重試，不過") == only(error=1, wrong=1, check=1, verify=1, evaluate=1, retry=1, however=1)


def test_matches_are_places_in_the_original_text() -> None:
    text = "So. Wait, 檢查 it"
    assert [(text[m.start : m.end], m.word) for m in find(text)] == [("Wait", "wait"), ("檢查", "check")]


def test_has_wait() -> None:
    assert has_wait("no. Wait, try 3") and has_wait("否。等等，试 3")
    assert not has_wait("but check the waiter") and not has_wait("")


@pytest.fixture(scope="module")
def world() -> PreTrainedTokenizerFast:
    """The miniature's kind of tokenizer: words and single Han characters are tokens, the rest is bytes."""
    return world_tokenizer.build([" wait, try 3. check it, checkers但是。等等，试 3。检查。"] * 5)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which common words are one token and rare ones are several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["wait but check waiter wait but check evaluation Wait"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("name", ["world", "bpe"])
def test_every_forbidden_sequence_spells_exactly_one_reflective_word(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    sequences = forbidden_sequences(tokenizer)
    assert len(sequences) == len(set(sequences)) > 0
    for sequence in sequences:
        said = tokenizer.decode(list(sequence))
        assert sum(counts(said).values()) == 1, said
        assert find(said)[0].end - find(said)[0].start == len(said.strip()), said


@pytest.mark.parametrize("name", ["world", "bpe"])
@pytest.mark.parametrize(
    "text",
    ["no. wait, try", "Wait", " WAIT", "x\nwait", "but check", "否。等等，试", "但是", "再试", " evaluate", "mistake"],
)
def test_every_spelling_is_forbidden_wherever_it_stands(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    sequences = forbidden_sequences(tokenizer)
    assert any(ids[i : i + len(s)] == s for s in sequences for i in range(len(ids)))


@pytest.mark.parametrize("name", ["world", "bpe"])
@pytest.mark.parametrize("text", [" try 3 plus 4", "等于", " evaluation", "试 3", "0123456789", " <think> </think>"])
def test_other_words_are_not_forbidden(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    assert not any(ids[i : i + len(s)] == s for s in forbidden_sequences(tokenizer) for i in range(len(ids)))


def test_words_of_several_tokens_are_forbidden_as_a_whole(bpe: PreTrainedTokenizerFast) -> None:
    ids = tuple(bpe.encode("evaluate", add_special_tokens=False))
    assert len(ids) > 1
    assert ids in forbidden_sequences(bpe)


def test_the_documented_limit_a_sequence_may_begin_an_unrelated_word(bpe: PreTrainedTokenizerFast) -> None:
    ids = tuple(bpe.encode("waits", add_special_tokens=False))  # "wait" + "s": tolerated, see the docstring
    assert ids[:-1] in forbidden_sequences(bpe)


def test_words_outside_the_vocabulary_do_not_forbid_the_unknown_token() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "wait": 1, "try": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert forbidden_sequences(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")) == ((1,),)
