"""The demo: a recipe run end to end, its model served, and three questions asked through the OpenAI client.

`make demo` runs it. Everything is done by the commands a person would give, each a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
import psutil
from rich.console import Console
from rich.panel import Panel

from ingot.services.beside import side_by_side
from ingot.services.running import end_on_signals
from ingot.services.summaries import size

RECIPE = Path("recipes/tiny.yaml")
STORE = ".ingot/store"
MODEL = "tiny"
READY_WITHIN = 600  # seconds a server may take to answer
QUESTIONS = (
    ("def add(a, b):", "Return the sum of a and b."),
    ("def is_empty(self):", "Return True if there is nothing left."),
    ("def get_name(self):", "Return the name of this object."),
)

console = Console(highlight=False)


def main() -> None:
    end_on_signals()
    began = time.monotonic()
    memory = PeakMemory()
    store = os.environ.get("INGOT_STORE", STORE)
    ran = subprocess.run([*_ingot("run"), str(RECIPE), "--store", store])
    if ran.returncode:
        sys.exit(ran.returncode)
    run = json.loads(subprocess.check_output([*_ingot("runs"), "show", MODEL, "--json", "--store", store]))
    metrics = {stage["stage"]: stage["metrics"] for stage in run["stages"]}
    _show_removed(metrics["dedup"])
    answers = _ask(store)
    console.rule("what it answers")
    for question, answer in answers:
        console.print(f"[bold]{question}[/bold]", soft_wrap=True)
        console.print(Panel(answer.rstrip() or "(nothing)", border_style="dim"))
    _summarise(metrics, time.monotonic() - began, memory.stop(), run)


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


def _ingot(*words: str) -> list[str]:
    return [sys.executable, "-m", "ingot.services.cli", *words]


def _ask(store: str) -> list[tuple[str, str]]:
    """Serves the model, asks the questions, and stops the server. An answer that does not end by itself
    within the tokens it may have is marked."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([*_ingot("serve"), MODEL, "--store", store, "--port", str(port)])
    try:
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120
        )
        _wait_until_ready(client, server)
        answers = []
        for signature, docstring in QUESTIONS:
            question = f'{signature}\n    """{docstring}"""'
            reply = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": question}], max_tokens=64, temperature=0.0
            )
            [choice] = reply.choices
            cut = " … (cut off)" if choice.finish_reason == "length" else ""
            answers.append((question, (choice.message.content or "") + cut))
        return answers
    finally:
        server.terminate()  # SIGINT may be ignored, as below nohup
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()


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


def _show_removed(dedup: dict[str, Any]) -> None:
    """What went, and one pair side by side."""
    console.rule("what dedup removed")
    console.print(
        f"{dedup['removed_exact']:,} exact and {dedup['removed_near']:,} near duplicates of "
        f"{dedup['documents_in']:,} documents: {size(dedup['bytes_in'] - dedup['bytes_out'])} of text"
    )
    pair = dedup.get("pair")
    if pair:
        console.print(f"for example, at a Jaccard similarity of {pair['similarity']:.3f},", end=" ")
        side_by_side(console, pair["removed"], pair["witness"])


def _summarise(metrics: dict[str, Any], seconds: float, peak: int, run: dict[str, Any]) -> None:
    console.rule("summary")
    made = sum(stage["seconds"] or 0 for stage in run["stages"])
    pretrain, preference = metrics["pretrain"], metrics["preference"]
    corpus, dedup, published = metrics["corpus"], metrics["dedup"], metrics["publish"]
    before, after = pretrain["bits_per_byte_before"], pretrain["bits_per_byte_after"]
    unigram = pretrain["bits_per_byte_unigram"]
    lines = {
        "bytes read": f"{corpus['bytes_in']:,} ({size(corpus['bytes_in'])})",
        "documents": f"{corpus['documents_out']:,}, {dedup['documents_out']:,} after dedup",
        "tokens trained": f"{pretrain['tokens_trained']:,} at {pretrain['tokens_per_second']:,.0f}/s",
        "parameters": f"{pretrain['parameters']:,}",
        "bits per byte": f"{before:.3f} before, {after:.3f} after (unigram entropy {unigram:.3f})",
        "preference": f"{preference['accuracy_before']:.3f} before, {preference['accuracy_after']:.3f} after "
        f"(accuracy on {preference['held_out_pairs']:,} held-out pairs)",
        "model": f"{published['model']}@{published['version']}",
        "time": f"{seconds / 60:.1f} min in all; the stages took {made / 60:.1f} min when they were made",
        "peak memory": size(peak),
    }
    for name, value in lines.items():
        console.print(f"{name:<16}{value}", soft_wrap=True)


if __name__ == "__main__":
    main()
