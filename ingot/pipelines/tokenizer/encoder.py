"""From text to token ids and back, with the tokenizer that a stage trained.

Text goes in as UTF-8 bytes, many texts at once, without a Python object for each, and gets the ids that
`tokenizers` gives for the same file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact
from ingot.pipelines.tokenizer.scheme import SPECIAL, scheme_of

if TYPE_CHECKING:
    from ingot.pipelines.tokenizer.pieces import Pieces
    from ingot.pipelines.tokenizer.subwords import Subwords


class TextEncoder:
    """A trained tokenizer, for text on its way to a model: it never turns text into a special token, whatever
    the text looks like. Raises IngotError for a tokenizer.json that no tokenizer stage made."""

    def __init__(self, serialized: str) -> None:
        import tokenizers

        self._serialized, self._scheme = serialized, scheme_of(serialized)
        ids: dict[str, int] = tokenizers.Tokenizer.from_str(serialized).get_vocab(with_added_tokens=True)
        self._tokens = {index: token for token, index in ids.items()}
        self.vocabulary = len(ids)
        self.end_of_text, self.system, self.user, self.assistant, self.stop = (ids[sign] for sign in SPECIAL)
        self._roles = {"system": self.system, "user": self.user, "assistant": self.assistant}

    def encode_utf8(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids (uint32) of many texts one after another, and where each text's begin in them, with the end
        of the last. Text number i is `data[offsets[i]:offsets[i + 1]]` (uint8, int64). No id is a special
        token's."""
        sizes, counts = self._pieces.cut(data, offsets)
        return self._subwords.encode(data, offsets, sizes, counts)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; none of them is a special token's."""
        encoded = [text.encode() for text in texts]
        offsets = np.append(0, np.cumsum([len(each) for each in encoded])).astype(np.int64)
        ids, places = self.encode_utf8(np.frombuffer(b"".join(encoded), np.uint8), offsets)
        return [part.tolist() for part in np.split(ids, places[1:-1])] if encoded else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.bytes_of[index] for index in ids)

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """The ids of the conversation as the chat template renders it, and a mask that is True on what the
        assistant says, its stop token included."""
        ids: list[int] = []
        mask: list[bool] = []
        encoded = self.encode_batch([message["content"] for message in messages])
        for message, content in zip(messages, encoded, strict=True):
            answer = message["role"] == "assistant"
            ids += [self._roles[message["role"]], *content, self.stop]
            mask += [False] + [answer] * (len(content) + 1)
        return ids, mask

    @cached_property
    def _pieces(self) -> Pieces:
        from ingot.pipelines.tokenizer.pieces import Pieces  # brings numba, which only who encodes waits for

        return Pieces(self._scheme)

    @cached_property
    def _subwords(self) -> Subwords:
        from ingot.pipelines.tokenizer.subwords import Subwords

        return Subwords(self._serialized, self._scheme, self.bytes_of)

    @cached_property
    def bytes_of(self) -> list[bytes]:
        """The bytes each id stands for; none for a special token."""
        letters = _byte_letters()
        return [
            b"" if token in SPECIAL else bytes(letters[letter] for letter in token)
            for _, token in sorted(self._tokens.items())
        ]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """How many bytes each id stands for (int64, by id); 0 for a special token."""
        return np.array([len(token) for token in self.bytes_of], dtype=np.int64)


def load_tokenizer(artifact: Artifact) -> TextEncoder:
    """The tokenizer of a tokenizer artifact, or of any checkpoint."""
    return TextEncoder(artifact.read("tokenizer.json").decode())


def refuse_other_tokenizer(artifact: Artifact, tokenizer: Artifact) -> None:
    """Raises IngotError where the artifact, token shards or a checkpoint, was made with another tokenizer:
    its ids mean other text."""
    own = artifact.files.get("tokenizer.json")
    if own is not None:
        made, given = own.sha256, tokenizer.files["tokenizer.json"].sha256
    else:
        inputs = artifact.made.get("inputs", {})
        made, given = inputs.get("tokenizer", {}).get("digest", "unknown"), tokenizer.digest
    if made != given:
        raise IngotError(
            f"{artifact.key} was made with another tokenizer ({made[:12]}) than {tokenizer.key} "
            f"({given[:12]}), so its ids mean other text; give the tokenizer it was made with, or delete all "
            f"below {artifact.key}/ and run again to make it with this one"
        )


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the rest for letters from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(0x100 + count): byte for count, byte in enumerate(others)}
