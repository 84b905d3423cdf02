"""Runs on a cluster, by the commands that a person gives: a head with a dashboard behind a token, a store on
an S3 service, and secrets of the submitter and of the cluster that must turn up nowhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from ports import free_port
from processes import started
from ray_nodes import Head, ray_head

from ingot.pipelines.runs import Attempt
from ingot.pipelines.store import LocalStore, S3Store, Store
from ingot.services.jobs import output
from ingot.services.jobs.output import kept_output
from ingot.services.jobs.package import package

if TYPE_CHECKING:
    from conftest import S3

pytestmark = pytest.mark.long

SUBMITTERS, CLUSTERS = "canary-of-the-submitter", "canary-of-the-cluster"
KNOWN = {
    ("POST", "/api/jobs/"),
    ("POST", "/api/jobs/{job_or_submission_id}/stop"),
    ("DELETE", "/api/jobs/{job_or_submission_id}"),
    ("PUT", "/api/packages/{protocol}/{package_name}"),
    ("PUT", "/api/serve/applications/"),
    ("DELETE", "/api/serve/applications/"),
}


@dataclass(frozen=True)
class Cluster:
    """A head, a recipe, and the command line as the submitter uses it, in a folder of their own."""

    head: Head
    folder: Path
    recipe: Path
    store: str
    env: Mapping[str, str]
    said: list[str]  # all that the commands printed

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "ingot.services.cli", *words, "--to", self.head.address]

    def ingot(self, *words: str, env: Mapping[str, str] | None = None) -> Any:
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.env, **(env or {})},
            timeout=150,
        )
        self.said.append(done.stdout + done.stderr)
        return done

    def submit(self, *words: str, name: str, store: str | None = None) -> Any:
        chosen = ["--store", store or self.store, "--name", name, "--until", "dedup"]
        return self.ingot("submit", str(self.recipe), *chosen, *words)


@pytest.fixture(scope="module")
def cluster(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("submit")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(8):
        words = " ".join(f"word{(number // 2) * 7 + count}" for count in range(200))
        (texts / f"{number}.txt").write_text(words + ("" if number % 2 else " the end"))
    recipe = folder / "recipe.yaml"
    source = {"source": "files", "name": "texts", "path": str(texts)}
    recipe.write_text(yaml.safe_dump({"name": "demo", "corpus": {"sources": [source]}}))
    (folder / "private.txt").write_text("what the submitter has beside the recipe")
    with ray_head(folder, cpus=2, env={**s3.env, "AWS_SECRET_ACCESS_KEY": CLUSTERS}) as head:
        env = {**os.environ, **s3.env, **head.env, "AWS_SECRET_ACCESS_KEY": SUBMITTERS, "COLUMNS": "200"}
        yield Cluster(head, folder, recipe, s3.uri("submit"), env, [])


def wait_for(what: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def manifests(store: Store, stage: str) -> list[str]:
    return [key for key in store.list(f"artifacts/{stage}/") if key.endswith("/manifest.json")]


@dataclass(frozen=True)
class Demo:
    """The run `demo`: submitted, submitted again while it was under way, stopped, and submitted again."""

    first: Any
    second: Any
    stopped: Any
    again: Any
    seconds: float  # from the first submission to the first stage
    committed: list[str]  # of dedup, when it was stopped


@pytest.fixture(scope="module")
def demo(cluster: Cluster) -> Demo:
    store, began = S3Store(cluster.store), time.monotonic()
    first, second = (cluster.submit("--no-wait", name="demo") for _ in range(2))
    wait_for(lambda: store.exists("runs/demo/000001/corpus.begun.json"))
    seconds = time.monotonic() - began
    wait_for(lambda: manifests(store, "corpus"))
    stopped = cluster.ingot("jobs", "stop", "demo")
    committed = manifests(store, "dedup")
    return Demo(first, second, stopped, cluster.submit(name="demo"), seconds, committed)


def test_a_run_is_submitted_once_while_it_is_under_way(demo: Demo, cluster: Cluster) -> None:
    assert demo.first.returncode == 0, demo.first.stderr
    assert demo.first.stdout.startswith(f"demo-1 submitted to {cluster.head.address}\n")
    assert demo.second.returncode == 0, demo.second.stderr
    attached = f"demo-1 is under way at {cluster.head.address}: attached to it\n"
    assert demo.second.stdout.startswith(attached)
    print(f"first stage after {demo.seconds:.1f} s, two submissions in it")


def test_submissions_at_once_make_one_job(cluster: Cluster) -> None:
    with ThreadPoolExecutor(2) as pool:
        twins = list(pool.map(lambda _: cluster.submit("--no-wait", name="twins"), range(2)))
    assert [twin.returncode for twin in twins] == [0, 0], [twin.stderr for twin in twins]
    assert sorted(twin.stdout.split(" at ")[0].split(" to ")[0] for twin in twins) == [
        "twins-1 is under way",
        "twins-1 submitted",
    ]
    assert cluster.ingot("jobs", "stop", "twins-1").returncode == 0


def test_a_stopped_run_goes_on_as_the_next_attempt(demo: Demo, cluster: Cluster, run_ingot: Any) -> None:
    assert (demo.stopped.returncode, demo.stopped.stdout) == (0, "demo-1 was stopped\n")
    assert demo.committed == []
    again = demo.again
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.startswith(f"demo-2 submitted to {cluster.head.address}\n")
    assert re.search(r"^corpus +already committed", again.stdout, re.MULTILINE)
    assert re.search(r"^dedup .* near duplicates removed; 2 documents", again.stdout, re.MULTILINE)
    shown = run_ingot("runs", "show", "demo", "--store", cluster.store, "--json", env=cluster.env)
    run = json.loads(shown.stdout)
    assert run["attempt"] == 2
    assert [stage["status"] for stage in run["stages"]] == ["skipped", "committed"]


def test_the_jobs_are_listed(demo: Demo, cluster: Cluster) -> None:
    listed = json.loads(cluster.ingot("jobs", "list", "--json").stdout)
    assert listed["to"] == cluster.head.address
    states = {job["id"]: (job["run"], job["attempt"], job["status"], job["store"]) for job in listed["jobs"]}
    assert states["demo-1"] == ("demo", 1, "STOPPED", cluster.store)
    assert states["demo-2"] == ("demo", 2, "SUCCEEDED", cluster.store)
    table = cluster.ingot("jobs", "list").stdout
    assert re.search(r"demo-1 +stopped .*\n.*demo-2 +succeeded ", table)
    stopped = cluster.ingot("jobs", "stop", "demo-2")
    assert (stopped.returncode, stopped.stdout) == (0, "demo-2 is done already\n")
    unknown = cluster.ingot("jobs", "logs", "other")
    assert unknown.returncode == 2
    assert "no job 'other'; there are: " in unknown.stderr


def test_what_a_job_printed_is_kept_in_the_store(demo: Demo, cluster: Cluster, run_ingot: Any) -> None:
    printed = cluster.ingot("jobs", "logs", "demo-2", "--no-follow").stdout
    kept = run_ingot("jobs", "logs", "demo-2", "--store", cluster.store, env=cluster.env)
    assert kept.returncode == 0, kept.stderr
    assert kept.stdout.startswith(f"run demo in {cluster.store}\n")
    assert printed.endswith(kept.stdout)  # after what Ray says of the job's start
    interrupted = run_ingot("jobs", "logs", "demo-1", "--store", cluster.store, env=cluster.env)
    assert "interrupted; the same command goes on from what is committed" in interrupted.stdout


def test_a_line_is_shown_soon_after_it_was_printed(cluster: Cluster) -> None:
    submitted = cluster.submit("--no-wait", "--set", "dedup.seed=2", name="timed")
    assert submitted.returncode == 0, submitted.stderr
    log, printed, shown = cluster.head.log("job-driver-timed-1.log"), {}, {}

    def watch() -> None:
        while follower.poll() is None:
            for line in log.read_text().splitlines() if log.exists() else ():
                printed.setdefault(line, time.monotonic())
            time.sleep(0.02)

    follower = subprocess.Popen(
        cluster.command("jobs", "logs", "timed"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cluster.folder,
        env=cluster.env,
    )
    attached = time.monotonic()
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert follower.stdout is not None
    for line in follower.stdout:
        attached = attached if shown else time.monotonic()
        shown[line.rstrip("\n")] = time.monotonic()
    assert follower.wait(60) == 0
    watcher.join()
    cluster.said.append("\n".join(shown))
    assert list(shown)[-1] == "timed-1 is done"
    assert set(printed) <= set(shown)
    late = {line: shown[line] - at for line, at in printed.items() if at > attached}
    assert len(late) >= 2, (printed, shown)
    print(f"{len(late)} lines, shown after at most {max(late.values()):.2f} s")
    live = min(late, key=lambda line: printed[line])
    assert shown[live] < max(printed.values()), "nothing was shown before all was printed"


def test_a_driver_that_was_held_is_fenced_off_by_the_next_attempt(
    cluster: Cluster, run_ingot: Any, tmp_path: Path
) -> None:
    store = LocalStore(str(tmp_path / "store"))
    submitted = cluster.submit("--no-wait", name="held", store=store.uri)
    assert submitted.returncode == 0, submitted.stderr
    wait_for(lambda: any(True for _ in store.list("shared/dedup/")))
    driver = psutil.Process(json.loads(store.read("runs/held/000001/run.json"))["pid"])
    driver.send_signal(signal.SIGSTOP)
    try:
        assert not manifests(store, "dedup") + manifests(store, "dedup-snapshots")
        words = ["--name", "held", "--store", store.uri, "--until", "corpus"]
        following = run_ingot("run", str(cluster.recipe), *words, cwd=tmp_path, env=cluster.env)
        assert following.returncode == 0, following.stderr
        assert "already committed" in following.stdout
        assert_an_interrupt_ends_the_watching(cluster, "held-1")
    finally:
        driver.send_signal(signal.SIGCONT)
    ended = cluster.ingot("jobs", "logs", "held-1")
    assert "held-1 failed" in ended.stderr
    fenced = "error: run held: attempt 2 has begun, so attempt 1 stops and commits nothing more; see: ingot"
    assert fenced in ended.stdout
    assert "Traceback" not in ended.stdout
    assert not manifests(store, "dedup") + manifests(store, "dedup-snapshots")
    assert "attempt 1 stops" in json.loads(store.read("runs/held/000001/dedup.json"))["error"]
    assert "attempt 1 stops" in kept_output(store, "held-1")
    # attempt 2 is one that the cluster knows nothing of, as where it was lost: the store counts it
    again = cluster.submit("--no-wait", name="held", store=store.uri)
    assert again.stdout.startswith("held-3 submitted to "), again.stdout + again.stderr


def assert_an_interrupt_ends_the_watching(cluster: Cluster, job: str) -> None:
    with started(
        cluster.command("jobs", "logs", job),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cluster.folder,
        env=cluster.env,
    ) as follower:
        assert follower.stdout is not None
        follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert said.strip() == f"{job} goes on; follow it with: ingot jobs logs {job} --to {cluster.head.address}"


def test_every_route_that_changes_something_asks_for_the_token(cluster: Cluster) -> None:
    """As the dashboard itself lists its routes when it starts."""
    listed = re.findall(
        r"<ResourceRoute \[(\S+)\] <\w+Resource +(\S+?)>", cluster.head.log("dashboard.log").read_text()
    )
    changing = {(method, path) for method, path in listed if method not in ("GET", "HEAD", "OPTIONS")}
    assert changing >= KNOWN
    for method, path in sorted(changing):
        url = cluster.head.address + re.sub(r"\{[^}]*\}", "x", path)
        for headers, refused in (({}, 401), ({"Authorization": "Bearer wrong"}, 403)):
            request = urllib.request.Request(
                url, data=b"{}", method="POST" if method == "*" else method, headers=headers
            )
            with pytest.raises(urllib.error.HTTPError) as answer:
                urllib.request.urlopen(request, timeout=20)
            assert answer.value.code == refused, (method, path)


@pytest.mark.parametrize(
    ("to", "env", "code", "said"),
    [
        ("HEAD", {"RAY_AUTH_MODE": "disabled"}, 1, "asks for a token; set RAY_AUTH_MODE=token and"),
        (
            "HEAD",
            {"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"},
            1,
            "asks for a token; set RAY_AUTH_MODE=token and",
        ),
        ("HEAD", {"RAY_AUTH_TOKEN": "0" * 64}, 1, "does not know this token; set RAY_AUTH_MODE=token and"),
        ("CLOSED", {}, 1, "no answer (ConnectionError); check --to"),
        ("S3", {}, 1, "something answers, but it is no Ray dashboard; check --to: its port is 8265"),
        ("127.0.0.1:8265", {}, 2, "--to: write the address of the cluster's dashboard as http://HOST:PORT"),
        ("http://me:password@host:1", {}, 2, "--to: write the address of the cluster's dashboard as"),
        (
            "http://192.0.2.1:8265",
            {},
            2,
            "a local folder, which the cluster at http://192.0.2.1:8265 does not",
        ),
    ],
)
def test_what_cannot_be_submitted_is_one_line_with_the_mend(
    cluster: Cluster, s3: S3, tmp_path: Path, to: str, env: dict[str, str], code: int, said: str
) -> None:
    places = {
        "HEAD": cluster.head.address,
        "CLOSED": f"http://127.0.0.1:{free_port()}",
        "S3": s3.env["AWS_ENDPOINT_URL"],
    }
    words = ["submit", str(cluster.recipe), "--store", str(tmp_path / "store"), "--to", places.get(to, to)]
    done = subprocess.run(
        [sys.executable, "-m", "ingot.services.cli", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**cluster.env, **env},
        timeout=60,
    )
    cluster.said.append(done.stdout + done.stderr)
    assert done.returncode == code
    [line] = done.stderr.splitlines()
    assert said in line
    assert "password" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env", "well", "found"),
    [
        ({}, True, "it takes the token; runs submitted there: "),
        ({"RAY_AUTH_MODE": "disabled"}, False, "asks for a token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, False, "does not know this token"),
    ],
)
def test_the_doctor_asks_the_dashboard(cluster: Cluster, env: dict[str, str], well: bool, found: str) -> None:
    done = cluster.ingot("doctor", "--store", cluster.store, "--json", env=env)
    [told] = [each for each in json.loads(done.stdout)["findings"] if each["name"] == "Ray dashboard"]
    assert (told["well"], bool(told["mend"])) == (well, not well)
    assert f"{cluster.head.address}: {found}" in told["found"]


def test_a_source_below_the_submitters_folder_is_refused(cluster: Cluster) -> None:
    done = cluster.submit("--set", "corpus.sources.0.path=texts", name="relative")
    assert done.returncode == 2
    assert "corpus.sources: texts: texts is below this folder, which is not sent; write a path" in done.stderr


def test_no_secret_is_found_anywhere(demo: Demo, cluster: Cluster) -> None:
    """After all that was submitted here, and one run that fails with the store's own error."""
    broken = cluster.submit("--set", "corpus.sources.0.path=s3://no-such-bucket/x", name="broken")
    assert broken.returncode == 1
    assert "make the bucket, or name one that exists" in broken.stdout
    assert "broken-1 failed; submit again to go on from what is committed" in broken.stderr
    told = json.loads(get(cluster, "/api/jobs/"))
    assert len([job for job in told if (job["submission_id"] or "").startswith("demo-")]) == 2
    described = [json.loads(get(cluster, f"/api/jobs/{job['submission_id']}")) for job in told]
    assert all(job["runtime_env"]["working_dir"].startswith("gcs://") for job in described)
    store = S3Store(cluster.store)
    everything = {key: store.read(key) for key in store.list("")}
    assert any(key.endswith("/manifest.json") for key in everything)
    everything |= {
        str(path): path.read_bytes() for path in cluster.head.temporary.rglob("*") if path.is_file()
    }
    assert any("job-driver-demo-2" in name for name in everything)
    everything |= {"the Jobs API": json.dumps([told, described]).encode()}
    everything |= {"the commands": "\n".join(cluster.said).encode()}
    secrets = [SUBMITTERS, CLUSTERS, cluster.head.env["RAY_AUTH_TOKEN"], "beside the recipe"]
    found = [
        (name, secret) for name, data in everything.items() for secret in secrets if secret.encode() in data
    ]
    assert found == []


def get(cluster: Cluster, path: str) -> bytes:
    token = {"Authorization": f"Bearer {cluster.head.env['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(cluster.head.address + path, headers=token)
    with urllib.request.urlopen(request, timeout=20) as answer:
        body: bytes = answer.read()
    return body


def test_what_is_sent_is_the_wheel_and_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\n")
    (tmp_path / "archive").mkdir()
    archive = package(recipe, tmp_path / "archive")
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
        assert file.read("recipe.yaml") == b"name: mine\n"
        file.extractall(tmp_path / "installed")
    assert {name.split("/")[0].rpartition(".")[2] for name in names} == {"ingot", "dist-info", "yaml"}
    assert "ingot/services/cli.py" in names
    assert archive.stat().st_size < 1_000_000
    (tmp_path / "twice").mkdir()
    assert package(recipe, tmp_path / "twice").read_bytes() == archive.read_bytes()

    # what was unpacked is as good as installed: from there the same is sent
    script = (
        "import sys; from pathlib import Path; from ingot.services.jobs.package import package;"
        "package(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    (tmp_path / "again").mkdir()
    subprocess.run(
        [sys.executable, "-c", script, str(recipe), str(tmp_path / "again")],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )
    with zipfile.ZipFile(tmp_path / "again" / "ingot.zip") as file:
        assert sorted(file.namelist()) == sorted(names)


def test_kept_output_is_whole_and_in_order(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    kept = output._Output(Attempt(store, "a-1", 2))
    store.create("runs/a-1/000002/run.json", b"{}")
    kept.put()  # nothing yet, so no piece
    for text in ("one\n", "two — ", "2\n"):
        kept.print(text)
        kept.put()
    assert len(list(store.list("runs/a-1/000002/output/"))) == 3
    assert kept_output(store, "a-1-2") == kept_output(store, "a-1") == "one\ntwo — 2\n"
