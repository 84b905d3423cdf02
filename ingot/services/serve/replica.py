"""What Ray Serve runs: one replica holds one vLLM engine and answers HTTP itself.

Ray's own `ray.serve.llm` puts an ingress process and a batching stream between client and engine, and each
of its processes imports vLLM. Here the proxy talks to the process that holds the engine: half the processes
to start, and every token goes out as it comes."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import re
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.errors import IngotError, UsageError
from ingot.pipelines.artifact import Artifact, Damaged, load
from ingot.pipelines.lifetime import end_with_parent
from ingot.pipelines.store import StoreError, open_store
from ingot.services.serve.loopback import bind_replica_server
from ingot.services.serve.settings import ServedModel
from ingot.services.serve.weights import cached_weights, fetch_weights

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray import serve

    from ingot.services.serve.adapter import Engine

logger = logging.getLogger("ray.serve")

# Ray Serve hands a replica's failure on as text with a traceback; these enclose the part for people.
OPENING, CLOSING = "<<ingot: ", " :ingot>>"

STORE_PAUSES = 2, 4, 8, 16  # seconds between tries to reach it

_QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # everything is in the checkpoint's folder
    "NO_COLOR": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_ON_CPU = {
    "TORCHDYNAMO_DISABLE": "1",  # else the first sampled request compiles: 12 to 28 s, and it needs g++
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's process computes itself: one import of vLLM less
}


class Replica:
    """One engine and its API."""

    def __init__(self, served: dict[str, Any]) -> None:
        self.served = ServedModel.from_json(served)
        self.engine: Engine | None = None
        self.warm_up: dict[str, Any] = {}

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Loads the model and warms it up; until this returns, Ray Serve sends no request here."""
        try:
            return await self._start()
        except Exception as error:
            logger.exception("the replica could not start")
            self.__del__()
            told = str(error) if isinstance(error, IngotError) else _cause(error)
            raise RuntimeError(f"{OPENING}{told}{CLOSING}") from None

    async def _start(self) -> FastAPI:
        end_with_parent()
        bind_replica_server()
        options = self.served.options
        os.environ.update(_QUIET)
        if not options.gpus:
            os.environ.update({**_ON_CPU, "OMP_NUM_THREADS": str(options.cpus)})
            preloaded = ["ingot.services.serve.fork_server", "ingot.services.serve.adapter"]
            multiprocessing.set_forkserver_preload(preloaded)
            forkserver.ensure_running()  # the engine's process will be a fork of it
        fetching = asyncio.to_thread(weights_of, self.served)
        folder, _ = await asyncio.gather(fetching, asyncio.to_thread(_import_vllm))
        from ingot.services.serve.adapter import Engine
        from ingot.services.serve.api import build_api, warm_up

        self.engine = Engine(folder, self.served)
        began = time.monotonic()
        tokens = await warm_up(self.engine, self.served.model)
        self.warm_up = {"sampled_tokens": tokens, "seconds": time.monotonic() - began}
        self.watch = asyncio.create_task(self._end_with_engine(self.engine))
        return build_api(self.engine, self.served)

    async def _end_with_engine(self, engine: Engine) -> None:
        """Ends this process as soon as the engine is dead. A replica that only fails its health checks would
        be asked for seconds more, and as it fails at once it would be given most of the requests; requests
        to a process that has ended go to the other replicas."""
        await engine.died()
        if self.engine is engine:  # else it was shut down
            logger.error("the engine has died: this replica ends, and another is started in its place")
            logging.shutdown()
            os._exit(1)

    async def describe(self) -> dict[str, Any]:
        """What this replica runs."""
        assert self.engine is not None
        return {
            "device": "cuda" if self.served.options.gpus else "cpu",
            "dtype": self.engine.dtype,
            "context": self.engine.context,
            "warm_up": self.warm_up,
            "log": _log_path(),
        }

    async def check_health(self) -> None:
        """Ray Serve replaces the replica where this raises."""
        try:
            if self.engine is not None:
                await self.engine.check_health()
        except Exception:
            # one of vLLM's own exceptions would make Ray Serve's controller import vLLM to read it
            raise RuntimeError("the engine has died") from None

    def __del__(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.shutdown()


def weights_of(served: ServedModel) -> Path:
    """The verified folder of what is served. A copy on this machine is used without asking the store, which
    may be away; else the store is asked, again after a pause while it can't be reached, each time with a line
    in the log. Raises IngotError after the last of STORE_PAUSES: Ray Serve starts the replica again."""
    folder = cached_weights(served.weights)
    if folder is not None:
        return folder
    logger.warning(
        "%s: its weights are not on this machine; fetching them from %s", served.model, served.store
    )
    for pause in STORE_PAUSES:
        try:
            return fetch_weights(checkpoint(served))
        except (Damaged, UsageError):
            raise
        except StoreError as error:
            logger.warning("waiting %d s for the store of %s: %s", pause, served.model, error)
            time.sleep(pause)
    return fetch_weights(checkpoint(served))


def checkpoint(served: ServedModel) -> Artifact:
    """The artifact to serve. Raises IngotError where it is gone or not the one that was published."""
    artifact = load(open_store(served.store), served.checkpoint)
    if artifact is None or artifact.digest != served.weights:
        found = "is gone" if artifact is None else f"holds other weights ({artifact.digest[:12]})"
        raise IngotError(
            f"{served.model}: its checkpoint {served.checkpoint} {found} in {served.store}; publish it again"
        )
    return artifact


def application(body: dict[str, Any]) -> serve.Application:
    """The Ray Serve application of a ServedModel in JSON; also the `import_path` of a Serve configuration."""
    from ray import serve
    from ray.serve.config import BackpressureConfig
    from ray.serve.schema import LoggingConfig

    options = ServedModel.from_json(body).options
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="replica",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=4 * options.sequences,  # vLLM batches best from a queue of its own
        max_queued_requests=options.queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        max_constructor_retry_count=1,  # what failed once here (bytes, memory, versions) fails again
        health_check_period_s=2,  # the third failure replaces the replica
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(body)


def _import_vllm() -> None:
    import ingot.services.serve.adapter  # noqa: F401


def _cause(error: Exception) -> str:
    """Why vLLM did not start. The engine's process prints its failure, and only that it failed comes here."""
    with open(_log_path(), errors="replace") as log:
        printed = re.search(
            r"^\(EngineCore.* ERROR .*?\] ([\w.]+(?:Error|Exception): .*)$", log.read(), re.MULTILINE
        )
    first = printed[1] if printed else f"{type(error).__name__}: {error}".splitlines()[0]
    return f"vLLM could not load the model: {first}; its log: {_log_path()}"


def _log_path() -> str:
    """The file that this process and its engine print to."""
    return os.readlink("/proc/self/fd/1")
