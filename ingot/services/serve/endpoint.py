"""Starting and stopping an endpoint: Ray where it is not there yet, Ray Serve on a port, the replicas."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ingot.errors import IngotError, UsageError
from ingot.pipelines.cluster import cluster, joined, refuse_unshared
from ingot.pipelines.registry import ModelVersion
from ingot.pipelines.store import Store
from ingot.services.serve.proxy import CALLBACK, CALLBACK_VARIABLE
from ingot.services.serve.replica import CLOSING, OPENING, application, checkpoint
from ingot.services.serve.settings import APPLICATION, ServedModel, ServeOptions
from ingot.services.serve.weights import fetch_weights


@dataclass(frozen=True)
class Endpoint:
    """A model version that answers."""

    url: str  # clients of the OpenAI API are given url + "/v1"
    model: str
    aliases: tuple[str, ...]
    weights: str  # the digest of what answers; its first 16 letters stand in each answer's system_fingerprint
    device: str
    dtype: str
    context: int  # tokens of prompt and answer together
    warm_up: dict[str, Any]  # the sampled tokens made before it was ready, and the seconds they took
    log: str  # what a replica and its engine printed


@contextmanager
def serve_model(
    store: Store,
    version: ModelVersion,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: ServeOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Endpoint]:
    """The version behind an OpenAI-compatible API on host:port, for the time of the block.

    Joins Ray as `cluster` does unless this process has joined already, and stops at the end what it started.
    `say` is told, a line a time, what goes on. Raises UsageError for a port in use or a cluster that serves
    already, IngotError where the weights are damaged, vLLM is missing or can't load the model."""
    served = ServedModel.of(store, version, options or ServeOptions())
    own = not joined() and not os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        if own:  # the cluster will be this machine: what is wrong with it is found before anything slow
            refuse_used_port(host, port)
            size = prepare(served)
            os.environ[CALLBACK_VARIABLE] = CALLBACK  # the proxy's process inherits it
            say("starting Ray")
            stack.enter_context(cluster(store))
        else:
            if joined():
                refuse_unshared(store)
            else:
                stack.enter_context(cluster(store))
            _refuse_second()
            size = _prepare_cluster(served, host, port)
            stack.callback(_leave_serve)
        say(f"{size / 1e6:.1f} MB of weights verified; starting Ray Serve on {host}:{port}")
        _start_serve(host, port)
        say("loading vLLM and the model")
        description = _deploy(served)
        if own:
            stack.callback(_stop_replicas)
        say(f"{served.model} has answered a sampled request: it is ready")
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        yield Endpoint(
            url=f"http://{shown}:{port}",
            model=served.model,
            aliases=served.aliases,
            weights=served.weights,
            **description,
        )


def refuse_used_port(host: str, port: int) -> None:
    """Raises UsageError where nothing can listen on host:port of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise UsageError(
                f"port {port} of {host}: {(error.strerror or str(error)).lower()}; choose another with "
                "--port, or stop what listens there"
            ) from None


def prepare(served: ServedModel) -> int:
    """Brings the weights to this machine and returns their bytes. Raises IngotError where a replica could
    not start here: vLLM is missing, or an object of the checkpoint is missing or altered."""
    if importlib.util.find_spec("vllm") is None:
        raise IngotError(
            f"vLLM is not installed on {socket.gethostname()}, and nothing else serves a model; "
            'install it there with: pip install "ingot[cpu]" ("ingot[gpu]" where there is a GPU)'
        )
    artifact = checkpoint(served)
    fetch_weights(artifact)
    return sum(file.bytes for file in artifact.files.values())


def _prepare_cluster(served: ServedModel, host: str, port: int) -> int:
    """The same on the machines of a cluster: the port on its head, the weights where a replica may run."""
    import ray

    head, options = {"node:__internal_head__": 0.001}, served.options
    on_head = ray.remote(num_cpus=0, resources=head, max_retries=0)(_told)
    on_worker = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0)(_told)
    tasks = [on_head.remote(refuse_used_port, host, port), on_worker.remote(prepare, served)]
    told = ray.get(tasks)
    for result in told:
        if isinstance(result, IngotError):
            raise result
    return int(told[1])


def _told(work: Callable[..., Any], *words: Any) -> Any:
    """What `work` returns, or the IngotError it raises: raised in a task it would come with a traceback."""
    try:
        return work(*words)
    except IngotError as error:
        return error


def _refuse_second() -> None:
    from ray import serve

    status = serve.status()
    if status.applications or status.proxies:
        there = ", ".join(sorted(status.applications)) or "nothing yet"
        raise UsageError(
            f"the Ray cluster runs Ray Serve already (it serves {there}), and Ray Serve has one port; "
            "stop it first, or name another cluster with RAY_ADDRESS"
        )


def _start_serve(host: str, port: int) -> None:
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=LoggingConfig(enable_access_log=False),
        )
    except (RuntimeError, TimeoutError) as error:
        raise IngotError(
            f"Ray Serve could not listen on {host}:{port}: {_last_line(error)}; choose another --port"
        ) from error


def _deploy(served: ServedModel) -> dict[str, Any]:
    """Starts the replicas and returns what one of them says of itself once all are ready."""
    from ray import serve

    try:
        handle = serve.run(application(served.to_json()), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise IngotError(_cause(error)) from error
    description: dict[str, Any] = handle.describe.remote().result()
    return description


def _cause(error: Exception) -> str:
    """What a replica said of its failure, from Ray Serve's account of it."""
    from ray import serve

    deployments = serve.status().applications[APPLICATION].deployments.values()
    account = "\n".join(deployment.message for deployment in deployments).strip() or str(error)
    told = re.search(re.escape(OPENING) + "(.*?)" + re.escape(CLOSING), account, re.DOTALL)
    return told[1] if told else f"a replica died while it started: {account.splitlines()[-1]}"


def _stop_replicas() -> None:
    """Requests under way may end; the rest of Ray Serve ends with our own cluster."""
    from ray import serve

    serve.delete(APPLICATION)


def _leave_serve() -> None:
    """On a cluster that goes on, nothing of Ray Serve does: the port was chosen for this endpoint."""
    from ray import serve

    serve.shutdown()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
