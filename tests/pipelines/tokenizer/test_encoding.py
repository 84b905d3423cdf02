"""Whatever the text, its ids are those of `tokenizers`, and they give it back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from unicode_of_tokenizers import ranges_of

from ingot.errors import IngotError
from ingot.pipelines.tokenizer import SPECIAL, TextEncoder
from ingot.pipelines.tokenizer.scheme import LONGEST_PIECE, Scheme, scheme_of
from ingot.pipelines.tokenizer.unicode_classes import LETTERS, NUMBERS, SPACES

WORDPIECE = Scheme("wordpiece")
SCHEMES = [
    Scheme(algorithm, 3, whitespace)
    for algorithm, whitespace in product(("bpe", "wordpiece"), ("words", "runs", "single"))
]


class Trained:
    """Both encoders of one tokenizer."""

    def __init__(self, scheme: Scheme, texts: list[str], vocabulary: int = 512) -> None:
        serialized = scheme.train(texts, vocabulary).to_str()
        self.ours = TextEncoder(serialized)
        self.tokenizers = tokenizers.Tokenizer.from_str(serialized)
        self.tokenizers.encode_special_tokens = True

    def theirs(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizers.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]


@pytest.fixture(scope="module")
def sample(small_texts: Path) -> list[str]:
    return [path.read_text() for path in sorted(small_texts.glob("*/*.txt"))] + [CODE] * 5


@pytest.fixture(scope="module")
def trained(sample: list[str]) -> Callable[[Scheme], Trained]:
    return cache(lambda scheme: Trained(scheme, sample))


CODE = (
    """class A:\n    def f(self):\n        if x ==  1:\n            return "a" * 2   # b\n\n\n\t\tpass\r\n"""
)


def strange_texts() -> list[str]:
    draw = random.Random(1)
    every = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    made = ["".join(draw.choices(every, k=60)) for _ in range(40)]
    made += ["".join(draw.choices(every[:0x300], k=300)) for _ in range(40)]
    made += [
        "".join(draw.choices(" \t\n\r\x00\x0b\x0c\x85\xa0\u2028\ufeff'’abc123", k=80)) for _ in range(40)
    ]
    return [
        *made,
        "",
        " ",
        "\n\n\n",
        " " * 3000,
        "a" * 3000,
        "\x00",
        "\ufeff",
        "e\u0301",
        "👩‍👩‍👧‍👦",
        "1234567",
    ]


def signs_of_any_case() -> list[str]:
    """Everything that may or may not be one of the letters after an apostrophe."""
    every = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    folded = [sign for sign in every if set(sign.casefold()) & set("stmdrevl")]
    return [
        f"{before}'{sign}{after}" for sign in folded for before in ("", "a") for after in ("", "e", "l x")
    ]


def adversarial_texts(most: int = 50_000) -> list[str]:
    draw = random.Random(2)
    letters = "aAsStT'reveEll \t\n\r\u00a0.,-(1\u0660é\u0301漢ſ👩"
    lengths = {LONGEST_PIECE * width + more for width in range(1, 5) for more in (-1, 0, 1)} | {1, 2, 3, 200}
    return [
        *("".join(draw.choices(letters, k=draw.randrange(1, 400))) for _ in range(most // 20)),
        *("".join(draw.choices("ab", k=size)) for size in (127, 128, 129, 500, 5000)),
        *(sign * length for sign in " \n\taé漢👩" for length in sorted(lengths)),
        *(sign * most for sign in ("ab", "\n", "\t ", "7", "-", "é", "👩", "<|end|>", "'s")),
        " " * most + "a",
    ]


def test_characters_are_what_tokenizers_takes_them_for() -> None:
    for known, pattern in ((LETTERS, r"\p{L}"), (NUMBERS, r"\p{N}"), (SPACES, r"\s")):
        bounds = [word.partition("-") for word in known.split()]
        assert [(int(a, 16), int(b or a, 16)) for a, _, b in bounds] == ranges_of(pattern)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_ids_are_those_of_tokenizers(
    trained: Callable[[Scheme], Trained], scheme: Scheme, sample: list[str]
) -> None:
    both, special = trained(scheme), set(range(len(SPECIAL)))
    installed = sorted(Path(tokenizers.__file__).parent.glob("**/*.py*i"))
    texts = [*sample, *(path.read_text(errors="replace") for path in installed)]
    texts += [*strange_texts(), *adversarial_texts(50_000 if scheme == Scheme() else 5_000)]
    found = both.ours.encode_batch(texts)
    wrong = [text[:80] for text, ids, own in zip(texts, both.theirs(texts), found, strict=True) if ids != own]
    assert not wrong
    for text, ids in zip(texts, found, strict=True):
        assert both.ours.decode(ids) == text
        assert int(both.ours.token_bytes[np.array(ids, dtype=np.int64)].sum()) == len(text.encode())
        assert not special & set(ids)


def test_so_are_those_after_an_apostrophe(trained: Callable[[Scheme], Trained]) -> None:
    both, texts = trained(Scheme()), signs_of_any_case()
    assert both.ours.encode_batch(texts) == both.theirs(texts)


@pytest.mark.parametrize("sign", ["a", " "])
def test_so_are_those_of_a_megabyte_of_one_sign(trained: Callable[[Scheme], Trained], sign: str) -> None:
    both = trained(Scheme())
    assert both.ours.encode_batch([sign * 1_000_000]) == both.theirs([sign * 1_000_000])


@pytest.mark.parametrize("sign", ["a", " "])
def test_a_megabyte_of_one_sign_is_as_many_pieces_to_wordpiece(
    trained: Callable[[Scheme], Trained], sign: str
) -> None:
    both = trained(WORDPIECE)
    [piece] = both.theirs([sign * LONGEST_PIECE])
    assert both.ours.encode_batch([sign * 1_000_000]) == [piece * (1_000_000 // LONGEST_PIECE)]


@pytest.mark.long
@pytest.mark.parametrize("sign", ["a", " ", "漢"])
def test_and_tokenizers_gives_the_same_after_some_time(
    trained: Callable[[Scheme], Trained], sign: str
) -> None:
    both = trained(WORDPIECE)
    assert both.ours.encode_batch([sign * 1_000_000]) == both.theirs([sign * 1_000_000])


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_a_number_has_as_many_digits_in_a_token_as_asked(digits: int) -> None:
    draw = random.Random(digits)
    texts = ["".join(draw.choices("0123456789 a,٣Ⅳ\n", k=200)) for _ in range(300)] + ["123456789" * 500]
    both = Trained(Scheme(digits=digits), texts, vocabulary=600)
    assert both.ours.encode_batch(texts) == both.theirs(texts)
    words = [both.ours.decode([id]) for id in range(both.ours.vocabulary)]
    assert max(sum(map(str.isnumeric, word)) for word in words) == digits


def changed(serialized: str, part: str, **settings: Any) -> str:
    body = json.loads(serialized)
    body[part] = {**(body[part] or {}), **settings} if settings else None
    return json.dumps(body)


def test_a_tokenizer_that_would_give_other_ids_is_refused(sample: list[str]) -> None:
    known = Scheme("bpe", 1, "runs").train(sample, 400).to_str()
    assert scheme_of(known) == Scheme("bpe", 1, "runs")
    lower, other = {"type": "Lowercase"}, {"type": "Whitespace"}
    for part, foreign in {
        "pre_tokenizer": changed(known, "pre_tokenizer"),
        "pre_tokenizer ": changed(changed(known, "pre_tokenizer"), "pre_tokenizer", **other),
        "normalizer": changed(known, "normalizer", **lower),
        "model": changed(known, "model", ignore_merges=True),  # as Llama 3 has it
        "added_tokens": json.dumps({**json.loads(known), "added_tokens": []}),
    }.items():
        with pytest.raises(
            IngotError, match=rf"^tokenizer\.json: its {part.strip()} is not as .* stage made$"
        ):
            TextEncoder(foreign)


def test_white_space_is_cut_as_asked() -> None:
    def pieces(whitespace: Any) -> list[str]:
        cut = Scheme(whitespace=whitespace).untrained().pre_tokenizer.pre_tokenize_str(CODE)
        return [CODE[start:end] for _, (start, end) in cut]

    assert {"):\n", "   ", " return", "  ", " #", "\n\n\n"} <= set(pieces("words"))
    assert {"):", "\n            ", "return", "   ", "#", "\n\n\n\t\t", "pass"} <= set(pieces("runs"))
    assert {piece for piece in pieces("single") if piece.isspace()} == {" ", "\n", "\t", "\r"}
    assert " ==" in pieces("single")


def test_a_table_of_pieces_that_is_full_begins_anew(trained: Callable[[Scheme], Trained]) -> None:
    encoder, draw = trained(Scheme()).ours, random.Random(3)
    words = ["".join(draw.choices("abcdefghij", k=9)) for _ in range(600_000)]
    text = " ".join(words)
    again = " ".join(words[:1000])
    before = encoder.encode_batch([again])
    [ids] = encoder.encode_batch([text])
    assert encoder.decode(ids) == text
    assert encoder.encode_batch([again]) == before
