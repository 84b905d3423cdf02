"""Learning tokens takes work in proportion to the text, however long its runs of one kind of character."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable
from typing import Any

import pytest

from ingot.pipelines.tokenizer.scheme import LONGEST_TRAINED, Scheme, scheme_of

_draw = random.Random(3)


def _random(characters: str) -> list[str]:
    return _draw.choices(characters, k=20_000)


RUNS = {
    "a letter": ["a"] * 20_000,
    "letters": _random("abcdefghij"),
    "digits": _random("0123456789"),
    "punctuation": _random("-=#*.,;"),
    "spaces": [" "] * 20_000,
    "white space": _random(" \t\n\r\u00a0\u3000"),
    "line ends": ["\n"] * 20_000,
    "CJK": _random("".join(map(chr, range(0x4E00, 0x5E00)))),
    "combining marks": _random("".join(c for c in map(chr, range(0x300, 0x370)) if unicodedata.combining(c))),
    "emoji": _random("".join(map(chr, range(0x1F600, 0x1F640)))),
}


class Recorded:
    """A tokenizer that keeps the pieces it hands to its trainer."""

    def __init__(self, tokenizer: Any, pieces: list[str]) -> None:
        self.__dict__.update(tokenizer=tokenizer, pieces=pieces)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.tokenizer, name, value)

    def train_from_iterator(self, texts: Iterable[str], trainer: Any) -> None:
        texts = list(texts)
        for text in texts:
            self.pieces.extend(piece for piece, _ in self.pre_tokenizer.pre_tokenize_str(text))
        self.tokenizer.train_from_iterator(texts, trainer)


@pytest.mark.parametrize("scheme", [Scheme(), Scheme("wordpiece"), Scheme(whitespace="runs", digits=1)])
@pytest.mark.parametrize("run", RUNS)
def test_the_work_of_training_grows_with_the_text(
    run: str, scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[str] = []
    untrained = Scheme.untrained
    monkeypatch.setattr(Scheme, "untrained", lambda self: Recorded(untrained(self), pieces))

    def work(text: str) -> int:
        """Joining the pairs of a piece takes the square of its symbols, which are bytes."""
        pieces.clear()
        trained = scheme.train([text], 300)
        monkeypatch.undo()
        assert scheme_of(trained.to_str()) == scheme  # text is encoded as the scheme says, without the limit
        monkeypatch.setattr(Scheme, "untrained", lambda self: Recorded(untrained(self), pieces))
        assert sum(map(len, pieces)) == len(text.encode())  # a symbol of the byte alphabet for each byte
        return sum(len(piece) ** 2 for piece in pieces)

    half, whole = "".join(RUNS[run][:10_000]), "".join(RUNS[run])
    assert work(whole) < 2.2 * work(half)


def test_pieces_of_ordinary_length_are_learned_as_before() -> None:
    text = "".join(f"{'=' * 100}\n{' ' * 40}value_{number} = 'ABCDEFGHIJ' * 80\n" for number in range(50))
    scheme = Scheme()
    bounded = [piece for piece, _ in scheme.cutter(LONGEST_TRAINED).pre_tokenize_str(text)]
    assert bounded == [piece for piece, _ in scheme.untrained().pre_tokenizer.pre_tokenize_str(text)]
