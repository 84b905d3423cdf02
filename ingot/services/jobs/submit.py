"""Which attempt at a run a submission is, and what the cluster is told to do.

A job's id is RUN-ATTEMPT, and the attempt is the run's own in the store. The cluster takes an id once, so of
two submissions at the same time one makes the job and the other attaches to it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ingot.errors import IngotError, UsageError
from ingot.pipelines.pipeline import stages_of
from ingot.pipelines.recipe import Recipe, load_recipe
from ingot.pipelines.runs import attempts_of
from ingot.pipelines.sections import Files
from ingot.pipelines.sources import check_apart
from ingot.pipelines.store import open_store
from ingot.services.jobs.api import HERE, Job, Jobs, address_of
from ingot.services.jobs.package import RECIPE, package

STORE_SECONDS = 30  # that one look into the store may take
# All of the environment that is sent. Ray kills a stopped driver after 3 s by default, which may be in the
# middle of leaving the cluster and of keeping its last words.
ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}


def submit(path: Path, settings: Sequence[str], until: str | None, to: str) -> tuple[Jobs, Job, bool]:
    """The job of this run that is under way, or else a new one, and whether it is new. Raises IngotError."""
    recipe = load_recipe(path, settings)
    stages_of(recipe, until)
    store = open_store(recipe.store, STORE_SECONDS)
    to, host = address_of(to)
    if not store.shared and host not in HERE:
        raise UsageError(
            f"store {store.uri}: a local folder, which the cluster at {to} does not see; name one that it "
            "sees with --store s3://bucket/prefix"
        )
    _refuse_relative(recipe)
    for source in recipe.corpus.sources:
        check_apart(source, store)
    jobs = Jobs(to)
    # Before the jobs are looked at: an attempt that begins in between is then one of them, and attached to.
    begun = attempts_of(store, recipe.name)
    earlier = [job for job in jobs.list() if job.run == recipe.name]
    for job in earlier:
        if not job.ended:
            return jobs, _of_store(job, store.uri), False
    number = max([*begun, *(job.attempt for job in earlier)], default=0) + 1
    name = f"{recipe.name}-{number}"
    words = ["run", RECIPE, "--store", store.uri, "--attempt", str(number), "--keep-output"]
    words += [word for setting in settings if not _of_a_store(setting) for word in ("--set", setting)]
    words += ["--until", until] if until else []
    metadata = {"ingot_run": recipe.name, "ingot_attempt": str(number), "ingot_store": store.uri}
    with tempfile.TemporaryDirectory() as folder:
        archive = package(path, Path(folder))
        entrypoint = shlex.join(["python", "-m", "ingot.services.cli", *words])
        new = jobs.submit(name, entrypoint, archive, ENVIRONMENT, metadata)
    return jobs, _of_store(jobs.get(name), store.uri), new


def _of_a_store(setting: str) -> bool:
    return setting.partition("=")[0].strip() == "store"  # told by --store, with its whole path


def _of_store(job: Job, store: str) -> Job:
    if job.store != store:
        raise IngotError(
            f"{job.id} is under way on this cluster with another store, {job.store}; give this run another "
            f"name with --name, or stop that one with: ingot jobs stop {job.id}"
        )
    return job


def _refuse_relative(recipe: Recipe) -> None:
    """A path of the submitter's folder, which is not sent, would be looked for in the job's."""
    for source in recipe.corpus.sources:
        if isinstance(source, Files) and "://" not in source.path and not Path(source.path).is_absolute():
            raise UsageError(
                f"corpus.sources: {source.name}: {source.path} is below this folder, which is not sent; "
                "write a path from / that every node of the cluster sees, or s3://bucket/prefix"
            )
