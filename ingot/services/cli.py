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
from ingot.errors import IngotError, Interrupted, UsageError

if TYPE_CHECKING:
    from ingot.pipelines.store import Store
    from ingot.services.jobs.api import Job, Jobs

app = typer.Typer(
    name="ingot",
    help="Raw text in, a served and aligned language model out, on any Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs = typer.Typer(help="What happened: the runs in a store.", no_args_is_help=True)
models = typer.Typer(help="The registry of models.", no_args_is_help=True)
jobs = typer.Typer(help="Runs on a cluster: what ingot submit sent there.", no_args_is_help=True)
app.add_typer(runs, name="runs")
app.add_typer(models, name="models")
app.add_typer(jobs, name="jobs")

DEFAULT_STORE = ".ingot/store"
StoreOption = Annotated[
    str,
    typer.Option("--store", envvar="INGOT_STORE", help="A folder, or s3://bucket/prefix.", metavar="URI"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
RecipeArgument = Annotated[Path, typer.Argument(help="A recipe, for example recipes/tiny.yaml.")]
RunStoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="INGOT_STORE",
        help="A folder, or s3://bucket/prefix, instead of the recipe's.",
        metavar="URI",
    ),
]
NameOption = Annotated[str | None, typer.Option(help="The run's name instead of the recipe's.")]
UntilOption = Annotated[str | None, typer.Option(help="The last stage to run.", metavar="STAGE")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Another value for a setting.", metavar="A.B=C")
]
ToOption = Annotated[
    str, typer.Option("--to", help="The cluster's dashboard, http://HOST:8265.", metavar="ADDRESS")
]
JobArgument = Annotated[str, typer.Argument(help="RUN-ATTEMPT, or RUN for its newest attempt there.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"ingot {__version__}")
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeArgument,
    store: RunStoreOption = None,
    name: NameOption = None,
    until: UntilOption = None,
    setting: SetOption = None,
    keep_output: Annotated[
        bool,
        typer.Option(
            "--keep-output", help="Keep what is printed in the store too, for ingot jobs logs --store."
        ),
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option(min=1, hidden=True, help="The attempt's number, as ingot submit gives it."),
    ] = None,
) -> None:
    """Run every stage of RECIPE that is not committed yet, here or on RAY_ADDRESS. Again: goes on.

    Each call is an attempt at the run. An attempt stops before its next commit once a later one has begun."""
    from ingot.services.running import run_recipe

    run_recipe(recipe, _settings(setting, name, store), until, attempt, keep_output)


@app.command()
def plan(
    recipe: RecipeArgument,
    store: RunStoreOption = None,
    setting: SetOption = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Take 20 steps of pretraining here, and tell the time from them.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Tell the time on GPUs of this name, such as H100.", metavar="NAME")
    ] = None,
    peak_share: Annotated[
        float, typer.Option(help="The share of the GPU's peak that a step reaches.", min=0.01, max=1)
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Of a worker's hour, to tell the cost.", min=0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what RECIPE costs: parameters, FLOPs, memory, objects, bytes, and with --probe or --device time.

    Needs no cluster and writes nothing. Trainings are planned from the recipe alone; of the stages before
    them it says what the store has already. Time is that of the trainings."""
    from ingot.services.planning import plan_recipe

    plan_recipe(
        recipe,
        _settings(setting, None, store),
        measure=probe,
        device=device,
        share=peak_share,
        price=price,
        as_json=as_json,
    )


@app.command()
def submit(
    recipe: RecipeArgument,
    to: Annotated[
        str,
        typer.Option("--to", help="A dashboard, http://HOST:8265, or kubernetes.", metavar="ADDRESS"),
    ],
    store: RunStoreOption = None,
    name: NameOption = None,
    until: UntilOption = None,
    setting: SetOption = None,
    wait: Annotated[bool, typer.Option(help="Show what the job prints until it has ended.")] = True,
    render: Annotated[
        bool, typer.Option("--render", help="For kubernetes: print the RayJob, and create nothing.")
    ] = False,
    image: Annotated[str | None, typer.Option(help="For kubernetes: the pods' image.")] = None,
    overlay: Annotated[
        str, typer.Option(help="For kubernetes: one of k8s/overlays, or a folder like them.")
    ] = "cpu",
    context: Annotated[str | None, typer.Option(help="For kubernetes: the kubeconfig's context.")] = None,
) -> None:
    """Run RECIPE on the cluster whose dashboard is at ADDRESS, as the job RUN-ATTEMPT; or on kubernetes, as a
    RayJob with a cluster of its own.

    While an attempt at the run is under way there, this attaches to it; else the next attempt begins, and
    goes on from what is committed in the store. An interrupt ends the watching, not the job.

    Sent are this Ingot's wheel and the recipe, and nothing of this folder or environment. The cluster's nodes
    must have what Ingot needs installed (the pinned requirements; no Ingot, and no internet), and the store's
    credentials in their own environment. The store must be one that the cluster sees and that can be read
    from here. The token is taken from RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token."""
    if to == "kubernetes":
        from ingot.services import kubernetes

        if render:
            text = kubernetes.render(
                recipe, name, store, image, overlay=overlay, settings=setting or [], until=until
            )
            return typer.echo(text, nl=False)
        sent = kubernetes.apply(
            recipe, name, store, image, context=context, overlay=overlay, settings=setting or [], until=until
        )
        state = "created" if sent.created else "under way already"
        return typer.echo(
            f"RayJob {sent.name} {state}; see: kubectl get rayjob {sent.name} --namespace {sent.namespace}"
        )
    if render:
        raise UsageError("--render prints a RayJob: use it with --to kubernetes")
    from ingot.services.jobs.submit import submit as send

    jobs, job, new = send(recipe, _settings(setting, name, store), until, to)
    typer.echo(f"{job.id} submitted to {to}" if new else f"{job.id} is under way at {to}: attached to it")
    if not wait:
        return typer.echo(f"follow it with: ingot jobs logs {job.id} --to {to}")
    ended = _follow(jobs, job)
    if ended.status != "SUCCEEDED":
        raise IngotError(f"{job.id} {_ENDS[ended.status]}; submit again to go on from what is committed")
    return None


@jobs.command("list")
def jobs_list(to: ToOption, as_json: JsonOption = False) -> None:
    """List the submitted attempts that the cluster knows of, the newest last."""
    from rich.console import Console

    from ingot.services.jobs.api import Jobs

    cluster = Jobs(to)
    listed = cluster.list()
    if as_json:
        return _print_json({"to": cluster.to, "jobs": [vars(job) for job in listed]})
    rows = [
        (job.id, job.status.lower(), _when(job.begun) if job.begun else "", _took(job), job.store)
        for job in listed
    ]
    return Console().print(
        _table(["job", "state", "begun", "took", "store"], rows) if rows else f"{cluster.to}: no jobs"
    )


@jobs.command("logs")
def jobs_logs(
    job: JobArgument,
    to: Annotated[
        str | None,
        typer.Option("--to", help="The cluster's dashboard, http://HOST:8265.", metavar="ADDRESS"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Read what the store keeps instead of asking a cluster.", metavar="URI"),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Go on until the job has ended.")] = True,
) -> None:
    """Show what a job prints, as it prints it; or, with --store, what is kept of it."""
    if (to is None) == (store is None):
        raise UsageError(
            "jobs logs: name the cluster with --to, or the store that keeps the output with --store"
        )
    if store is not None:
        from ingot.services.jobs.output import kept_output

        return typer.echo(kept_output(_existing(store), job), nl=False)
    from ingot.services.jobs.api import Jobs

    cluster = Jobs(to or "")
    found = cluster.find(job)
    if not follow:
        return typer.echo(cluster.output(found), nl=False)
    ended = _follow(cluster, found)
    return typer.echo(f"{ended.id} {_ENDS[ended.status]}", err=True)


@jobs.command("stop")
def jobs_stop(job: JobArgument, to: ToOption) -> None:
    """Stop a job and wait until it has ended. Submitted again, the run goes on from what is committed."""
    from ingot.services.jobs.api import Jobs

    cluster = Jobs(to)
    found = cluster.find(job)
    ended = found if found.ended else cluster.stop(found)
    typer.echo(f"{ended.id} {_ENDS[ended.status]}{' already' if found.ended else ''}")


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
    document: Annotated[
        str | None,
        typer.Option(
            help="What became of a document (its id, path, PATH:RECORD or address): why it was not read, or "
            "dedup removed or kept it, and where its tokens are. Of a file with several, a list.",
            metavar="ID",
        ),
    ] = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Which records of the corpus were not read, and why.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(help="Which documents a sample of pretraining is made of; a step's log lists its own."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every stage of the run's last attempt, or what became of one document, or what a sample is."""
    from rich.console import Console

    from ingot.pipelines.runs import show_run
    from ingot.services.summaries import summary

    opened = _existing(store)
    shown = show_run(opened, name)
    if (document is not None) + (sample is not None) + quarantine > 1:
        raise UsageError("runs show: give one of --document, --sample and --quarantine")
    if quarantine:
        from ingot.services import documents

        return _print_records(documents.quarantine(opened, shown), as_json)
    if document is not None:
        from ingot.services import beside, documents

        at = documents.records(opened, shown, document)
        if len(at) > 1 or (at and at[0]["state"] == "quarantined"):
            return _print_records(at, as_json)
        found = documents.document(opened, shown, at[0]["id"] if at else document)
        if as_json:
            return _print_json(found)
        for each in found:
            beside.explain(Console(highlight=False), each)
        return None
    if sample is not None:
        from ingot.services import documents

        found = documents.sample(opened, shown, sample)
        if as_json:
            return _print_json(found)
        parts = [
            (
                each["document"],
                each["source"],
                f"{each['first']:,}–{each['stop'] - 1:,}",
                f"{each['tokens']:,}",
            )
            for each in found
        ]
        return Console().print(_table(["document", "source", "its tokens", "of"], parts))
    if as_json:
        return _print_json(shown)
    rows = []
    for stage in shown["stages"]:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.1f} s"
        line = summary(stage["stage"], stage["metrics"]) if stage["metrics"] else stage.get("error", "")
        rows.append((stage["stage"], stage["status"], (stage["digest"] or "")[:12], seconds, line))
    return Console().print(_table(["stage", "status", "digest", "took", ""], rows))


@runs.command("tensorboard")
def runs_tensorboard(
    name: Annotated[str, typer.Argument(help="The run.")],
    to: Annotated[Path, typer.Option("--to", help="A folder on this machine.", metavar="FOLDER")],
    store: StoreOption = DEFAULT_STORE,
    follow: Annotated[bool, typer.Option(help="Go on until the run has ended.")] = True,
) -> None:
    """Write the metrics of the run's trainings below FOLDER for TensorBoard, from those in the store.

    New points come with every checkpoint. What is there already is not written again."""
    from ingot.services.tensorboard import export

    export(_existing(store), name, to, follow, typer.echo)
    typer.echo(f"see: tensorboard --logdir {to}")


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


@models.command("export")
def models_export(
    model: Annotated[str, typer.Argument(help="NAME for its newest version, or NAME@VERSION.")],
    to: Annotated[
        Path, typer.Option("--to", help="A folder that is empty or does not exist yet.", metavar="FOLDER")
    ],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write MODEL to FOLDER as a Hugging Face folder: weights, configuration, tokenizer and chat template.

    Every file is verified. FOLDER has all of them, or is left as it was."""
    from ingot.pipelines.export import export_model
    from ingot.pipelines.registry import resolve

    opened = _existing(store)
    version = resolve(opened, model)
    files = export_model(opened, version, to)
    size = sum(file.bytes for file in files.values())
    typer.echo(f"{version.id}: {len(files)} files, {size:,} bytes, in {to}")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="NAME for its newest version, or NAME@VERSION.")],
    store: StoreOption = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(help="Copies of the model that answer.", min=1)] = 1,
    cpus: Annotated[int, typer.Option(help="CPUs of each replica.", min=1)] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each replica; 0 computes on the CPU.", min=0)] = 0,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer together; by default the model's own.", min=1),
    ] = None,
    sequences: Annotated[int, typer.Option(help="Requests that a replica computes at once.", min=1)] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are answered 429.", min=1)] = 1024,
) -> None:
    """Serve MODEL behind an OpenAI-compatible API, on Ray Serve and vLLM, until interrupted."""
    from ingot.services.running import serve_until_interrupted
    from ingot.services.serve.settings import ServeOptions

    options = ServeOptions(replicas, cpus, gpus, context, sequences, queue)
    serve_until_interrupted(_existing(store), model, host, port, options)


@app.command()
def doctor(
    store: StoreOption = DEFAULT_STORE,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="A dashboard to ask, http://HOST:8265, as ingot submit would.", metavar="ADDRESS"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether this machine, the store, Ray and Kubernetes are ready, and say what to do if not.

    The store is written to: one small object is created, refused a second time, read and deleted. Ray is the
    cluster at RAY_ADDRESS, asked with the token that a run would send, and the dashboard at ADDRESS or
    RAY_API_SERVER_ADDRESS. Kubernetes is the kubeconfig's context, asked whether you may create RayJobs.
    What is not set up is no problem; what is set up and does not work is one, and then the exit code is 1."""
    from rich.console import Console

    from ingot.services.doctor import examine

    findings = examine(store, to)
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
    except Interrupted as interrupted:
        typer.echo(f"\n{interrupted}", err=True)
        sys.exit(interrupted.exit_code)
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


MOST_RECORDS = 100  # that are listed on a terminal
_ENDS = {"SUCCEEDED": "is done", "FAILED": "failed", "STOPPED": "was stopped"}


def _follow(jobs: Jobs, job: Job) -> Job:
    """Shows the job's output until it has ended; an interrupt leaves it running."""

    def show(text: str) -> None:
        typer.echo(text, nl=False)

    try:
        return jobs.follow(job, show)
    except KeyboardInterrupt:
        follow = f"ingot jobs logs {job.id} --to {jobs.to}"
        raise Interrupted(f"{job.id} goes on; follow it with: {follow}") from None


def _settings(setting: list[str] | None, name: str | None, store: str | None) -> list[str]:
    """What the options lay over the recipe. JSON's strings are YAML's, so that a run may be named 2024 and a
    folder "on"."""
    given = {key: value for key, value in (("name", name), ("store", store)) if value is not None}
    return [*(setting or []), *(f"{key}={json.dumps(value)}" for key, value in given.items())]


def _existing(uri: str) -> Store:
    """The store, refused where it holds nothing yet: a mistyped --store should not look like an empty one."""
    from ingot.pipelines.store import open_store

    store = open_store(uri)
    if not any(True for _ in store.list("runs/")) and not any(True for _ in store.list("artifacts/")):
        raise UsageError(
            f"store {store.uri}: holds no runs; name another with --store, or make one with: ingot run"
        )
    return store


def _print_records(records: list[dict[str, Any]], as_json: bool) -> None:
    """Each record's place, and its document or why there is none."""
    if as_json:
        return _print_json(records)
    if not records:
        return typer.echo("no record is in quarantine")
    from rich.console import Console

    rows = [
        (
            each["source"],
            f"{each['path']}:{each['record']}",
            each.get("state", "quarantined"),
            each.get("reason") or each.get("id", ""),
        )
        for each in records[:MOST_RECORDS]
    ]
    Console().print(_table(["source", "record", "state", "id, or why it was not read"], rows))
    if len(records) > MOST_RECORDS:
        typer.echo(f"and {len(records) - MOST_RECORDS:,} more; --json prints all")
    return None


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


def _took(job: Job) -> str:
    from datetime import timedelta

    return str(timedelta(seconds=round(job.ended_at - job.begun))) if job.begun and job.ended_at else ""


def _when(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    main()
