"""`make demo`: everything is done by the commands that a person would give, each a process of its own. All of
them end with this one: when a signal ends it, it ends them and waits; when it is killed, the kernel sends
them SIGTERM, and they end as on any other SIGTERM, with all that they started."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import openai
import psutil
from rich.console import Console

from ingot.errors import IngotError
from ingot.pipelines.lifetime import end_with_parent
from ingot.pipelines.recipe import load_recipe
from ingot.pipelines.runs import show_run
from ingot.pipelines.store import open_store
from ingot.services.demo.answers import NEW_TOKENS, QUESTIONS, Answer, from_json
from ingot.services.demo.show import show_answers, show_numbers, show_removed
from ingot.services.running import end_on_signals

RECIPE = Path("recipes/tiny.yaml")
STORE = ".ingot/store"
READY_WITHIN = 600  # seconds a server may take to answer
ENDED_WITHIN = 60  # seconds a process may take to end all that it started, before it is killed

console = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ingot.services.demo")
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE, help="one with all stages")
    parser.add_argument("--end-with-parent", action="store_true", help="as when make is killed")
    options = parser.parse_args()
    end_on_signals()
    if options.end_with_parent:
        end_with_parent(sign=signal.SIGTERM)
    try:
        _demonstrate(options.recipe, os.environ.get("INGOT_STORE", STORE))
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            console.print("stopped")
        sys.exit(130)
    except IngotError as error:
        sys.exit(f"error: {error}")


def _demonstrate(path: Path, store: str) -> None:
    began = time.monotonic()
    memory = PeakMemory()
    recipe = load_recipe(path)
    _run(_ingot("run", str(path), "--store", store))
    run = show_run(open_store(store), recipe.name)
    metrics = {stage["stage"]: stage["metrics"] for stage in run["stages"]}
    show_removed(console, metrics["dedup"])
    answering = _python("ingot.services.demo.answers", store, recipe.name)
    answers = from_json(_run(answering, stdout=subprocess.PIPE))
    answers["preference"] = _ask_served(store, metrics["publish"]["model"])
    show_answers(console, answers, metrics)
    show_numbers(
        console,
        metrics,
        stages_seconds=sum(stage["seconds"] or 0 for stage in run["stages"]),
        seconds=time.monotonic() - began,
        peak=memory.stop(),
    )


class PeakMemory:
    """The most memory this process and all it starts hold at once: shared pages counted once (PSS)."""

    def __init__(self) -> None:
        self.peak = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self.ended.wait(2):
            self.peak = max(self.peak, sum(map(_resident, _family())))


def _family() -> list[psutil.Process]:
    """This process and all it started."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def _ingot(*words: str) -> list[str]:
    return _python("ingot.services.cli", *words)


@contextmanager
def _started(command: list[str], stdout: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process which ends with the block, or with this process. What a terminal sends to all
    of its processes comes to this one alone, which passes it on."""
    before = partial(end_with_parent, os.getpid(), signal.SIGTERM)
    process = subprocess.Popen(command, stdout=stdout, preexec_fn=before, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(ENDED_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _run(command: list[str], stdout: int | None = None) -> bytes:
    """What the command printed, where `stdout` is a pipe. Ends this process where the command fails."""
    with _started(command, stdout) as process:
        printed, _ = process.communicate()
    if process.returncode:
        sys.exit(process.returncode)
    return printed


def _ask_served(store: str, model: str) -> list[Answer]:
    """The served model's answer to each of QUESTIONS, through the OpenAI client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _started(_ingot("serve", model, "--store", store, "--port", str(port))) as server:
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120
        )
        _wait_until_ready(client, server)
        return [_ask(client, model, question) for question in QUESTIONS]


def _ask(client: openai.OpenAI, model: str, question: str) -> Answer:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=NEW_TOKENS,
        temperature=0.0,
    )
    [choice] = reply.choices
    return Answer(choice.message.content or "", choice.finish_reason == "stop")


def _wait_until_ready(client: openai.OpenAI, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_WITHIN
    while time.monotonic() < until:
        if server.poll() is not None:
            sys.exit(server.returncode or 1)
        try:
            client.models.list()
            return
        except openai.APIError:
            time.sleep(1)
    sys.exit(f"error: the server did not answer within {READY_WITHIN} s")


if __name__ == "__main__":
    main()
