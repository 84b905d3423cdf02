"""What the workers tell the driver while they train: a small Ray actor beside the driver."""

from __future__ import annotations

from typing import Any


class Monitor:
    """Keeps messages until the driver takes them, and why training can't go on if it can't."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._refusal: dict[str, str] | None = None

    def tell(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        """The messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def refuse(self, words: str, trace: str = "") -> None:
        """Repeating won't help, for a reason that is a person's to mend or, with a trace, a fault of the
        program; the first reason counts."""
        self._refusal = self._refusal or {"words": words, "trace": trace}

    def refusal(self) -> dict[str, str] | None:
        return self._refusal
