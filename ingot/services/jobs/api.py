"""Ray's Jobs API as Ingot uses it: the jobs of a cluster, their output as it is printed, their end.

This is the one file that knows Ray's private parts here: the header that carries the token, the client's
`_do_request`, which takes a timeout that no public call passes on, and the dashboard's stream of a log file
(what the Jobs API itself offers for following, `tail_job_logs`, shows a line up to three seconds late in Ray
2.60)."""

from __future__ import annotations

import codecs
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingot.errors import IngotError, UsageError
from ingot.pipelines.patience import say_waiting

ANSWER_SECONDS = 10  # that a dashboard may take to answer
CHANGE_SECONDS = 60  # that it may take to answer what submits or stops
POLL_SECONDS = 0.5
STREAM_SECONDS = 1.0  # between two looks of Ray's into a log file
SILENCE_SECONDS = 2.0  # of a log, after which it is asked whether the job has ended
PATIENCE_SECONDS = 60  # without an answer, until following ends
STOP_SECONDS = 60  # that a job may take to end
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+-]{0,40}$")
HERE = ("127.0.0.1", "localhost", "::1")
MEND_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"


@dataclass(frozen=True)
class Job:
    """A submitted attempt at a run. Times are seconds since the epoch."""

    id: str
    run: str
    attempt: int
    store: str
    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    message: str
    begun: float | None
    ended_at: float | None
    node: str | None = None  # that its driver runs on

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class JobForgotten(IngotError):
    """The cluster answers, but knows no such job."""


class Jobs:
    """The jobs of the cluster whose dashboard is at `to`, http://HOST:PORT. Raises UsageError for another
    address and IngotError where no dashboard answers there within `seconds`, or refuses the token."""

    def __init__(self, to: str, seconds: float = ANSWER_SECONDS) -> None:
        self.to, _ = address_of(to)
        self.seconds = seconds
        # Ray would take each of these instead of the address that is given
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(name, None)
        from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard.modules.dashboard_sdk", "_private.authentication.http_token_authentication"):
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        with self._explained():
            self.headers: dict[str, str] = get_auth_headers_if_auth_enabled({})
            self._refuse_what_is_not_ray()
            self.client = JobSubmissionClient(self.to)
            self._limit_calls()

    def _limit_calls(self) -> None:
        """Gives every request of Ray's client a limit: it has none of its own, and a dashboard that accepts
        and is silent would hold it for ever. What changes something may take longer than what asks."""
        ask = self.client._do_request

        def limited(method: str, *words: Any, **options: Any) -> Any:
            wait = self.seconds if method == "GET" else CHANGE_SECONDS
            return ask(method, *words, timeout=(self.seconds, wait), **options)

        self.client._do_request = limited

    def list(self) -> list[Job]:
        """Those that `ingot submit` sent, the newest last."""
        with self._explained():
            found = [_job(details) for details in self.client.list_jobs()]
        return sorted((job for job in found if job), key=lambda job: (job.begun or 0, job.id))

    def find(self, name: str) -> Job:
        """The job RUN-ATTEMPT, or the newest of RUN. Raises UsageError, listing what there is."""
        jobs = self.list()
        for job in reversed(jobs):
            if job.id == name:
                return job
        mine = [job for job in jobs if job.run == name]
        if not mine:
            there = ", ".join(job.id for job in jobs)
            raise UsageError(f"{self.to}: no job {name!r}; there are: {there or 'none'}")
        return max(mine, key=lambda job: job.attempt)

    def get(self, job_id: str) -> Job:
        """The job of this id. Raises IngotError where it is not Ingot's."""
        with self._explained():
            try:
                job = _job(self.client.get_job_info(job_id))
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
                raise JobForgotten(
                    f"{self.to}: the cluster does not know job {job_id}: a head that was restarted forgets "
                    "its jobs; what they committed stays in the store: submit the run again to go on from it"
                ) from error
        if job is None:
            raise IngotError(f"{self.to}: job {job_id} was not sent by ingot submit; name the run otherwise")
        return job

    def submit(
        self, job_id: str, entrypoint: str, archive: Path, env: dict[str, str], metadata: dict[str, str]
    ) -> bool:
        """Sends the archive, which becomes the job's working folder, and starts the job; False where one of
        this id is there already."""
        runtime = {"working_dir": str(archive), "env_vars": env}
        with self._explained():
            try:
                self.client.submit_job(
                    entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime, metadata=metadata
                )
            except RuntimeError as error:
                if f"{job_id} already exists" not in str(error):
                    raise
                return False
        return True

    def stop(self, job: Job) -> Job:
        """Asks the job to end, and waits until it has. Raises IngotError where it does not."""
        end = time.monotonic() + STOP_SECONDS
        while not (job := self.get(job.id)).ended:
            if time.monotonic() > end:
                raise IngotError(f"{job.id}: asked to stop, but still {job.status} after {STOP_SECONDS} s")
            with self._explained():
                self.client.stop_job(job.id)  # again, as what has not started yet hears nothing
            time.sleep(POLL_SECONDS)
        return job

    def output(self, job: Job) -> str:
        """All that the job has printed."""
        with self._explained():
            printed: str = self.client.get_job_logs(job.id)
        return printed

    def follow(self, job: Job, show: Callable[[str], object]) -> Job:
        """Shows what the job prints as it prints it, from its first words to its end; gives the job then."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        shown = 0  # bytes
        while not (job := self._get_patiently(job.id)).ended:
            for part in self._stream(job, shown) if job.node else ():
                shown += len(part)
                show(decoder.decode(part))
            time.sleep(POLL_SECONDS)
        rest = self.output(job).encode()[shown:]
        show(decoder.decode(rest, final=True))
        return job

    def _get_patiently(self, job_id: str) -> Job:
        """A connection that breaks for a moment is no reason to stop following."""
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

        began = time.monotonic()
        tries = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, IngotError) and not isinstance(error, JobForgotten)
            ),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_fixed(2),
            before_sleep=lambda _: say_waiting(f"the dashboard {self.to}", time.monotonic() - began),
            reraise=True,
        )
        try:
            return tries(self.get, job_id)
        except JobForgotten:
            raise
        except IngotError as error:
            raise IngotError(
                f"{job_id}: its cluster has not answered for {PATIENCE_SECONDS} s ({error}); what it "
                f"committed stays in the store; see: ingot jobs logs {job_id} --to {self.to}"
            ) from error

    def _stream(self, job: Job, skip: int) -> Iterator[bytes]:
        """The job's log after `skip` bytes, as it grows, until the job has ended or the stream breaks."""
        parts: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read_stream, args=(job, parts), daemon=True).start()
        while True:
            try:
                part = parts.get(timeout=SILENCE_SECONDS)
            except queue.Empty:  # the stream never ends by itself
                if self._get_patiently(job.id).ended:
                    return
                continue
            if part is None:
                return
            part, skip = part[skip:], max(0, skip - len(part))
            if part:
                yield part

    def _read_stream(self, job: Job, parts: queue.Queue[bytes | None]) -> None:
        import requests

        query = {"submission_id": job.id, "node_id": job.node, "lines": -1, "interval": STREAM_SECONDS}
        url, timeout = f"{self.to}/api/v0/logs/stream", (ANSWER_SECONDS, None)
        try:
            with requests.get(
                url, params=query, headers=self.headers, stream=True, timeout=timeout
            ) as answer:
                for part in answer.iter_content(chunk_size=None) if answer.ok else ():
                    parts.put(part)
        except requests.RequestException:
            pass  # as at an end: whoever waits for the parts looks at the job
        finally:
            parts.put(None)

    def guarded(self) -> bool:
        """Whether the dashboard asks for the token."""
        import requests

        with self._explained():
            answer = requests.get(f"{self.to}/api/version", timeout=self.seconds)
        return answer.status_code == 401

    def _refuse_what_is_not_ray(self) -> None:
        import requests

        answer = requests.get(f"{self.to}/api/version", headers=self.headers, timeout=self.seconds)
        if answer.status_code in (401, 403):
            raise IngotError(_refusal(self.to, missing=answer.status_code == 401))
        try:
            version = answer.json()["ray_version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            version = None
        if not isinstance(version, str) or not _VERSION.match(version):  # Ray's client would fail on another
            raise IngotError(
                f"{self.to}: something answers, but it is no Ray dashboard; check --to: its port is "
                "8265 by default"
            ) from None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what Ray and requests raise into one line."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            missing = not error.message.startswith("Authentication failed")  # here, or said by the cluster
            raise IngotError(_refusal(self.to, missing)) from error
        except (requests.RequestException, ConnectionError) as error:
            raise IngotError(
                f"{self.to}: no answer ({type(error).__name__}); check --to, and that the cluster runs and "
                "its dashboard can be reached from here"
            ) from error
        except RuntimeError as error:  # an answer that says what went wrong, with a traceback as its text
            said = str(error).strip().rstrip(".").splitlines() or ["it says nothing"]
            raise IngotError(f"{self.to}: {said[-1]}; see the cluster's dashboard log") from error


def address_of(to: str) -> tuple[str, str]:
    """The address without a closing slash, and its host. Raises UsageError."""
    try:
        parts = urlsplit(to)
        well = parts.scheme in ("http", "https") and parts.hostname and parts.port
        alone = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        well = alone = False
    if not (well and alone):  # not repeated here: it may hold a password
        raise UsageError(
            "--to: write the address of the cluster's dashboard as http://HOST:PORT, such as "
            "http://127.0.0.1:8265"
        )
    return f"{parts.scheme}://{parts.netloc}", parts.hostname or ""


def _refusal(to: str, missing: bool) -> str:
    return f"{to}: {'asks for a token' if missing else 'does not know this token'}; {MEND_TOKEN}"


def _job(details: Any) -> Job | None:
    """None for what Ingot did not submit."""
    said = details.metadata or {}
    if details.submission_id is None or "ingot_run" not in said:
        return None
    return Job(
        details.submission_id,
        said["ingot_run"],
        int(said["ingot_attempt"]),
        said["ingot_store"],
        details.status.value,
        details.message or "",
        details.start_time / 1000 if details.start_time else None,
        details.end_time / 1000 if details.end_time else None,
        details.driver_node_id,
    )
