"""`ingot run` and `ingot serve`, from the command line's words to the end of what they start."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ingot.pipelines.cluster import cluster
from ingot.pipelines.corpus import check_sources
from ingot.pipelines.pipeline import run_stages, stages_of
from ingot.pipelines.recipe import load_recipe
from ingot.pipelines.runs import begin_attempt
from ingot.pipelines.store import Store, open_store
from ingot.services.jobs.output import keep_output
from ingot.services.screen import Screen
from ingot.services.serve.settings import ServeOptions


def run_recipe(
    path: Path, settings: Sequence[str], until: str | None, number: int | None = None, keep: bool = False
) -> None:
    """Runs the recipe's stages and prints what became of each. With a number it is that attempt of the run;
    `keep` keeps its output in the store. Raises IngotError."""
    end_on_signals()
    recipe = load_recipe(path, settings)
    stages = stages_of(recipe, until)
    store = open_store(recipe.store)
    if number is None:  # a submitted attempt has begun: its failure is recorded, as every attempt's
        check_sources(recipe.corpus, store)
    attempt = begin_attempt(store, recipe, stages, number)
    if keep:
        keep_output(attempt)
    console = Console(highlight=False)
    console.print(f"run [bold]{recipe.name}[/bold] in {escape(store.uri)}", soft_wrap=True)
    began = time.monotonic()
    screen = Screen(console)
    try:
        with ExitStack() as stack:

            @cache
            def connect() -> None:
                logs = stack.enter_context(cluster(store))
                console.print(f"Ray's logs: {logs}", style="dim", soft_wrap=True, markup=False)

            run_stages(recipe, store, attempt, screen, stages, connect)
    finally:
        screen.close()
    see = f"ingot runs show {recipe.name} --store {store.uri}"
    console.print(f"done in {time.monotonic() - began:.1f} s; see: {see}", soft_wrap=True, markup=False)


def serve_until_interrupted(store: Store, model: str, host: str, port: int, options: ServeOptions) -> None:
    """Serves the model until SIGINT, SIGTERM or SIGHUP, then stops what it started."""
    from ingot.pipelines.registry import resolve
    from ingot.services.serve.endpoint import serve_model

    end_on_signals()
    version = resolve(store, model)
    console = Console(highlight=False)
    try:
        with serve_model(
            store, version, host=host, port=port, options=options, say=console.print
        ) as endpoint:
            end_on_signals()  # Ray has put its own handlers in their place
            console.print(f"{version.id} answers at {endpoint.url}/v1 ({how_to_stop()})", soft_wrap=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            console.print("stopped")


def end_on_signals() -> None:
    """SIGTERM, which a scheduler sends, and SIGHUP, which a closed terminal does, end a command as the
    keyboard's interrupt. Signals that were ignored when it started (`nohup`, a script's background job) stay
    so, as is the convention; SIGTERM never does. After the first of the two both do nothing, as the next
    would cut the end short: a closed terminal sends SIGHUP while a supervisor sends SIGTERM, and the kernel
    sends what `end_with_parent` asks for once a thread of the parent. The keyboard still interrupts."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)


def how_to_stop() -> str:
    """What ends this command: where SIGINT is ignored, the keyboard does not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return f"to stop: kill -TERM {os.getpid()}"
    return "interrupt to stop"


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt
