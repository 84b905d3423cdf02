"""Checks the grammars of structured answers off the event loop, in a process of limited time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ingot.services.serve.limits import Refused

WAIT_SECONDS = 10  # for a grammar's turn and its check; the worker itself is limited in processor time
START_SECONDS = 60
KINDS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}


class GrammarChecker:
    """One worker process, started at the first grammar and again when one was too much for it."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = tokenizer
        self._lock = asyncio.Lock()
        self._worker: asyncio.subprocess.Process | None = None
        self._good: dict[str, None] = {}  # the last grammars that passed

    async def check(self, structured: dict[str, Any], parameter: str = "structured_outputs") -> None:
        """Raises Refused for a grammar that is wrong, or takes too much time or memory; with 503 where the
        checker itself has no time for it."""
        [(kind, constraint)] = structured.items()
        if kind == "json_object":
            return
        text = constraint if isinstance(constraint, str) else json.dumps(constraint)
        question = json.dumps([KINDS[kind], text])
        if question in self._good:
            return
        try:
            async with asyncio.timeout(START_SECONDS), self._lock:
                wrong = await self._ask(question)
        except TimeoutError:
            raise Refused(503, "the check of structured output is busy; try again") from None
        if wrong:
            raise Refused(400, f"{parameter}.{kind}: {wrong[:500]}", parameter)
        self._good[question] = None
        while len(self._good) > 64:
            del self._good[next(iter(self._good))]

    async def _ask(self, question: str) -> str | None:
        worker = self._worker or await self._start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        answer = b""
        try:
            worker.stdin.write(question.encode() + b"\n")
            await worker.stdin.drain()
            answer = await asyncio.wait_for(worker.stdout.readline(), WAIT_SECONDS)
        except (TimeoutError, OSError, ValueError):
            pass
        finally:
            if not answer:  # it died, hangs, or the client went away: the next grammar gets a new one
                await self._stop()
        return json.loads(answer) if answer else "takes too much time or memory; make it smaller or simpler"

    async def _start(self) -> asyncio.subprocess.Process:
        self._worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ingot.services.serve.grammar_worker",
            str(self._tokenizer),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "MALLOC_ARENA_MAX": "2", "RAYON_NUM_THREADS": "1"},  # address space per thread
        )
        assert self._worker.stdout is not None
        if await self._worker.stdout.readline() != b"null\n":
            await self._stop()
            raise RuntimeError("the process that checks grammars does not start")
        return self._worker

    async def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and worker.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None and self._worker.returncode is None:
            self._worker.kill()
        self._worker = None
