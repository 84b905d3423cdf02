"""How a tokenizer cuts and matches text: all of it but the tokens it learned, as tokenizer.json says it.

Both algorithms are byte-level (https://arxiv.org/abs/1909.03341 in the form GPT-2 gave it): they begin with
all 256 bytes, so any text round-trips and nothing is unknown. A text is cut into pieces first, and no token
goes over the end of one. In a piece BPE (https://arxiv.org/abs/1508.07909) joins pairs in the order in which
they were learned; WordPiece (https://arxiv.org/abs/1609.08144) takes the longest token that fits, then the
longest that fits the rest. Both learn their tokens by joining pairs, which is how `tokenizers` trains a
WordPiece.

A word's piece begins with the space before it. That tells the first token of a word from the others, as
BERT's `##` does, without a second token for every byte and without two meanings of the token `##a`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

from ingot.errors import IngotError
from ingot.pipelines.sections import MOST_DIGITS, Algorithm, Whitespace

if TYPE_CHECKING:
    import tokenizers

# Characters of a WordPiece piece. `tokenizers` tries every end of every token, so that 1 MB of a letter that
# no longer token begins with takes it 23 s where a piece has 64.
LONGEST_PIECE = 32
# Characters of a BPE piece in training. `tokenizers` moves the rest of a piece for each pair it joins, so
# that learning from a run of n characters takes n² steps: 164 s for 200,000 times one letter. Text is encoded
# without this limit. Pieces of ordinary text are shorter, so that what is learned from it is the same.
LONGEST_TRAINED = 256
UTF8_WIDTH = 4  # bytes of a character, at most

END_OF_TEXT, SYSTEM, USER, ASSISTANT, STOP = (
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
SPECIAL = (END_OF_TEXT, SYSTEM, USER, ASSISTANT, STOP)


@dataclass(frozen=True)
class Scheme:
    """`digits` of a number are in a piece at most. `whitespace` says what a piece is where two or more white
    spaces follow one another:

    - words: as in GPT-4 and Llama 3: line ends with what is before them, then the rest but its last, which
      leads the word that follows;
    - runs: all of them, so that a line end with the indentation after it is one piece;
    - single: each of them.

    A single space leads the word or sign that follows in all three. Of Ingot's own sources with 2,048 tokens
    learned from them, runs gave 1 % fewer tokens than words, single 27 % more, and WordPiece 0.5 % more than
    BPE."""

    algorithm: Algorithm = "bpe"
    digits: int = 3
    whitespace: Whitespace = "words"

    @property
    def pattern(self) -> str:
        """What a piece is: a contraction, a word with one leading sign, some digits, a run of signs, or white
        space. For words it is GPT-4's pattern without its possessive quantifiers."""
        after_signs, spaces = {
            "words": (r"[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"),
            "runs": ("", r"\s+"),
            "single": ("", r"\s"),
        }[self.whitespace]
        return (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
            rf"|\p{{N}}{{1,{self.digits}}}| ?[^\s\p{{L}}\p{{N}}]+{after_signs}|{spaces}"
        )

    @property
    def longest_piece(self) -> int | None:
        """In characters; a longer one is cut again."""
        return LONGEST_PIECE if self.algorithm == "wordpiece" else None

    def untrained(self) -> tokenizers.Tokenizer:
        """A tokenizer that knows no token yet."""
        import tokenizers
        from tokenizers import decoders, models

        model: Any = models.BPE()
        if self.longest_piece is not None:
            model = models.WordPiece(
                continuing_subword_prefix="", max_input_chars_per_word=self.longest_piece * UTF8_WIDTH
            )
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = self.cutter(self.longest_piece)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def cutter(self, longest: int | None) -> tokenizers.pre_tokenizers.PreTokenizer:
        """Cuts text into pieces of at most `longest` characters, or of any length (None)."""
        import tokenizers
        from tokenizers import pre_tokenizers

        cuts: list[Any] = [pre_tokenizers.Split(tokenizers.Regex(self.pattern), "isolated")]
        if longest is not None:
            cuts.append(pre_tokenizers.FixedLength(longest))
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(cuts)

    def train(self, texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
        """A tokenizer of so many tokens, `SPECIAL` first; of fewer where the texts have no more pairs. The
        work is linear in the length of the texts, whatever they are: pieces are bounded while it learns."""
        from tokenizers import pre_tokenizers, trainers

        settings: dict[str, Any] = {
            "vocab_size": vocabulary,
            "special_tokens": list(SPECIAL),
            "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
            "show_progress": False,
        }
        trainer: Any = trainers.BpeTrainer(**settings)
        if self.algorithm == "wordpiece":
            trainer = trainers.WordPieceTrainer(continuing_subword_prefix="", **settings)
        tokenizer = self.untrained()
        tokenizer.pre_tokenizer = self.cutter(self.longest_piece or LONGEST_TRAINED)
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.pre_tokenizer = self.cutter(self.longest_piece)
        return tokenizer


def scheme_of(serialized: str) -> Scheme:
    """The scheme of a tokenizer.json. Raises IngotError where it is none of them: its ids would be others."""
    found = _unlearned(serialized)
    pieces = found["pre_tokenizer"] or {}
    cuts = pieces.get("pretokenizers") or [pieces]
    pattern = (cuts[0].get("pattern") or {}).get("Regex")
    differs = "pre_tokenizer"
    for choice in product(get_args(Algorithm), range(1, MOST_DIGITS + 1), get_args(Whitespace)):
        scheme = Scheme(*choice)
        if scheme.pattern != pattern or scheme.algorithm != found["model"]["type"].lower():
            continue
        known = scheme.untrained()
        known.add_special_tokens(list(SPECIAL))
        expected = _unlearned(known.to_str())
        parts = [part for part, value in expected.items() if found.get(part) != value]
        if not parts:
            return scheme
        differs = ", ".join(parts)
    raise IngotError(
        f"tokenizer.json: its {differs} is not as a tokenizer stage makes it, so text would get other ids; "
        "take one that a tokenizer stage made"
    )


def _unlearned(serialized: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(serialized)
    body["model"] = {name: value for name, value in body["model"].items() if name not in ("vocab", "merges")}
    return body
