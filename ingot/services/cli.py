"""The command line. Ray, torch and vLLM are imported by the commands that use them, so help is quick."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingot import __version__
from ingot.errors import IngotError

if TYPE_CHECKING:
    from ingot.pipelines.store import Store

app = typer.Typer(
    name="ingot",
    help="Raw text in, a served and aligned language model out, on any Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs = typer.Typer(help="What happened: the runs in a store.", no_args_is_help=True)
models = typer.Typer(help="The registry of models.", no_args_is_help=True)
app.add_typer(runs, name="runs")
app.add_typer(models, name="models")

DEFAULT_STORE = ".ingot/store"
StoreOption = Annotated[
    str,
    typer.Option("--store", envvar="INGOT_STORE", help="A folder, or s3://bucket/prefix.", metavar="URI"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"ingot {__version__}")
        raise typer.Exit


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/tiny.yaml.")],
    store: Annotated[
        str | None,
        typer.Option(
            envvar="INGOT_STORE",
            help="A folder, or s3://bucket/prefix, instead of the recipe's.",
            metavar="URI",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name instead of the recipe's.")] = None,
    until: Annotated[str | None, typer.Option(help="The last stage to run.", metavar="STAGE")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Another value for a setting.", metavar="A.B=C")
    ] = None,
) -> None:
    """Run every stage of RECIPE that is not committed yet, here or on RAY_ADDRESS. Again: goes on."""
    from ingot.services.running import run_recipe

    # JSON's strings are YAML's, so that a run may be named 2024 and a folder "on"
    given = {key: value for key, value in (("name", name), ("store", store)) if value is not None}
    settings = [*(setting or []), *(f"{key}={json.dumps(value)}" for key, value in given.items())]
    run_recipe(recipe, settings, until)


@runs.command("list")
def runs_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the runs."""
    from rich.console import Console

    from ingot.pipelines.runs import list_runs, show_run

    opened = _existing(store)
    shown = [show_run(opened, name) for name in list_runs(opened)]
    if as_json:
        return _print_json({"store": opened.uri, "runs": shown})
    rows = [(run["run"], run["attempt"], _state(run), _when(run["at"])) for run in shown]
    return Console().print(
        _table(["run", "attempt", "state", "begun"], rows) if rows else f"{opened.uri}: no runs"
    )


@runs.command("show")
def runs_show(
    name: Annotated[str, typer.Argument(help="The run.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show every stage of the run's last attempt."""
    from rich.console import Console

    from ingot.pipelines.runs import show_run
    from ingot.services.summaries import summary

    shown = show_run(_existing(store), name)
    if as_json:
        return _print_json(shown)
    rows = []
    for stage in shown["stages"]:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.1f} s"
        line = summary(stage["stage"], stage["metrics"]) if stage["metrics"] else stage.get("error", "")
        rows.append((stage["stage"], stage["status"], (stage["digest"] or "")[:12], seconds, line))
    return Console().print(_table(["stage", "status", "digest", "took", ""], rows))


@models.command("list")
def models_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List every version of every model."""
    from rich.console import Console

    from ingot.pipelines.registry import list_versions

    opened = _existing(store)
    versions = list_versions(opened)
    if as_json:
        return _print_json({"store": opened.uri, "models": [version.to_json() for version in versions]})
    rows = [(version.id, version.weights[:12], version.run, _when(version.at)) for version in versions]
    return Console().print(
        _table(["model", "weights", "run", "published"], rows) if rows else f"{opened.uri}: no models"
    )


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="NAME for its newest version, or NAME@VERSION.")],
    store: StoreOption = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 8000,
) -> None:
    """Serve MODEL behind an OpenAI-compatible API, on Ray Serve and vLLM, until interrupted."""
    from ingot.services.running import serve_until_interrupted

    serve_until_interrupted(_existing(store), model, host, port)


@app.command()
def doctor(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Check whether this machine, the store and the cluster are ready, and say what to do if not."""
    from rich.console import Console

    from ingot.services.doctor import examine

    findings = examine(store)
    if as_json:
        _print_json(
            {"ready": all(finding.well for finding in findings), "findings": [vars(f) for f in findings]}
        )
    else:
        rows = [
            ("ok" if f.well else "PROBLEM", f.name, f.found if f.well else f"{f.found}; {f.mend}")
            for f in findings
        ]
        Console().print(_table(["", "checked", "found"], rows))
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """The entry point: every failure ends in one message and its exit code."""
    try:
        app()  # leaves by SystemExit: 0, 2 for a wrong option, 130 after an interrupt
    except SystemExit as leave:
        if leave.code == 130:
            typer.echo("interrupted; the same command goes on from what is committed", err=True)
        raise
    except IngotError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        _show_unforeseen(error)
        sys.exit(1)


def _show_unforeseen(error: Exception) -> None:
    """The first cause of what nobody foresaw; the whole of it goes to a file."""
    trace = "".join(traceback.format_exception(error))
    log = Path(os.environ.get("INGOT_LOG", ".ingot/error.log"))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(trace)
    except OSError:  # the folder may be the very thing that is wrong
        log = Path(tempfile.mkdtemp(prefix="ingot-")) / "error.log"
        log.write_text(trace)
    causes: list[BaseException] = [error]
    while isinstance(cause := causes[-1].__cause__ or getattr(causes[-1], "cause", None), BaseException):
        if cause in causes:
            break
        causes.append(cause)
    first = causes[-1]
    place = traceback.extract_tb(first.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    said = (str(first).strip().splitlines() or [""])[-1]
    typer.echo(f"error: {type(first).__name__}: {said}{where}; all of it: {log}", err=True)


def _existing(uri: str) -> Store:
    """The store, refused where it holds nothing yet: a mistyped --store should not look like an empty one."""
    from ingot.errors import UsageError
    from ingot.pipelines.store import open_store

    store = open_store(uri)
    if not any(True for _ in store.list("runs/")) and not any(True for _ in store.list("artifacts/")):
        raise UsageError(
            f"store {store.uri}: holds no runs; name another with --store, or make one with: ingot run"
        )
    return store


def _print_json(body: Any) -> None:
    typer.echo(json.dumps(body, indent=2))


def _table(columns: list[str], rows: list[tuple[Any, ...]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # as they are: brackets are no markup
    return table


def _state(run: dict[str, Any]) -> str:
    """The state of the stage the run has come to."""
    for stage in run["stages"]:
        if stage["status"] not in ("committed", "skipped"):
            return f"{stage['stage']} {stage['status']}"
    return "done"


def _when(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    main()
