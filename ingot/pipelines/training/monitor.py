"""What passes between the driver's node and the workers while they train: a small Ray actor beside the
driver."""

from __future__ import annotations

from typing import Any


class Monitor:
    """Keeps the workers' messages until the driver takes them, why training can't go on if it can't, and
    whether the workers are to pause, as there is room for more of them."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._refusal: dict[str, str] | None = None
        self._room = 0
        self._paused = False

    def tell(self, message: dict[str, Any]) -> None:
        if message["kind"] == "begin":  # a new group knows nothing of what the last one was asked
            self._room, self._paused = 0, False
        elif message["kind"] == "paused":
            self._paused = True
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

    def ask_to_pause(self, workers: int) -> bool:
        """There is room for so many workers. Whether those there are have saved everything and wait; asked
        again and again, as a group that has just begun forgets it."""
        self._room = workers
        return self._paused

    def go_on(self) -> None:
        """The room is gone."""
        self._room = 0

    def room(self) -> int:
        """For how many workers there is room, if for more than there are, else 0. The workers ask, and
        those that wait go on when they hear 0."""
        self._paused = self._paused and self._room > 0
        return self._room
