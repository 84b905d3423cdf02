"""From the text of a request to the token ids that the model was trained with.

The ids are `TextEncoder`'s: no text becomes a special token, so nobody can forge a turn of a conversation by
typing its markers. The text is encoded by `tokenizers`, which starts faster than the encoder for corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers

from ingot.pipelines.tokenizer import TextEncoder


class PromptEncoder(TextEncoder):
    """A checkpoint's tokenizer, for short texts. Raises IngotError for a tokenizer.json that no tokenizer
    stage made."""

    def __init__(self, serialized: str) -> None:
        super().__init__(serialized)
        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self._tokenizer.encode_special_tokens = True  # in a text they are bytes like any other

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; none of them is a special token's."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool, open_end: bool) -> list[int]:
        """The ids of a conversation; with `answer` the assistant's turn begins after it, with `open_end` its
        last message goes on."""
        ids, _ = self.conversation(messages)
        if open_end:
            return ids[:-1]
        return [*ids, self.assistant] if answer else ids
