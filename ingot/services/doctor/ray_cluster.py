"""Ray: whether a run can join the cluster that RAY_ADDRESS names, and be sent to a dashboard, each with the
token that Ray would send. Nothing is started there: both are asked who they are.

Which token that is Ray's own loader says; it is private, and no other file imports it. The token itself is
shown nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ingot.errors import IngotError
from ingot.pipelines.cluster import unreachable
from ingot.services.doctor.finding import Finding, problem

ANSWER_SECONDS = 3  # that a head or a dashboard may take
MODES = ("", "token", "disabled")
ON_THIS_MACHINE = (None, "auto", "local")
TAKEN, OPEN = "it takes the token", "it asks for no token: whoever reaches it can run anything there"
MEND_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"


def examine(dashboard: str | None) -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS") or None
    named = dashboard or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address and address.startswith(("http://", "https://")) and not named:
        named = address
    yield from _token(sent_away=named is not None or address not in ON_THIS_MACHINE)
    yield from _head(address)
    yield from _dashboard(named)


def _token(sent_away: bool) -> Iterator[Finding]:
    """The one that this environment has. `sent_away`: a cluster is named by its address."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    given, place = f"RAY_AUTH_MODE={mode}", _place()
    if mode.lower() not in MODES:
        said = f"{given}: Ray takes that for disabled, and sends none"
        yield Finding("Ray token", False, said, "set RAY_AUTH_MODE to token")
    elif mode.lower() == "disabled":
        yield Finding("Ray token", True, f"{given}: none is sent, and what a run starts here asks for none")
    elif place is None:
        said = f"RAY_AUTH_TOKEN_PATH={os.environ['RAY_AUTH_TOKEN_PATH']}: no file with a token in it"
        yield Finding("Ray token", False, said, "write the cluster's token there, or unset it")
    elif mode and place:
        yield Finding("Ray token", True, f"the one in {place} is sent")
    elif mode and sent_away:
        yield Finding(
            "Ray token", False, f"{given}, but there is none", "set RAY_AUTH_TOKEN to the cluster's"
        )
    elif place:
        said = f"the one in {place} stays on this machine; it is sent to others with RAY_AUTH_MODE=token"
        yield Finding("Ray token", True, said)
    else:
        yield Finding("Ray token", True, "none; where a run starts Ray on this machine, Ray makes one")


def _head(address: str | None) -> Iterator[Finding]:
    if address in ON_THIS_MACHINE:
        where = "looks for one on this machine" if address == "auto" else "starts its own on this machine"
        yield Finding("Ray", True, f"RAY_ADDRESS is {address or 'not set'}: a run {where}")
        return
    assert address is not None
    mend = "check RAY_ADDRESS, or unset it to run on this machine alone"
    if silence := unreachable(address, ANSWER_SECONDS):
        yield Finding("Ray", False, f"{address}: {silence}", mend)
    elif os.environ.get("RAY_USE_TLS", "0") != "0":
        yield Finding("Ray", True, f"{address}: something answers; by TLS, so it was not asked for more")
    else:
        yield _introduced(address, mend)


def _introduced(address: str, mend: str) -> Finding:
    """What the head says of itself, and whether it wants the token for that."""
    import grpc
    import ray

    token = _sent()
    if token and not (token.isascii() and token.isprintable()):  # the error of gRPC would show it
        return Finding("Ray", False, f"{address}: not asked, as no header can carry this token", MEND_TOKEN)
    try:
        version = _version(address, token)
        if version is None and token:
            return Finding("Ray", False, f"{address}: it does not know this token", MEND_TOKEN)
        if version is None:
            return Finding("Ray", False, f"{address}: it asks for a token, and none is sent", MEND_TOKEN)
        if version != ray.__version__:
            found = f"{address}: Ray {version}, and {ray.__version__} here, which can't join it"
            return Finding("Ray", False, found, "install the cluster's version, or submit with: ingot submit")
        guarded = token and _version(address, None) is None
    except grpc.RpcError as error:
        return Finding("Ray", False, f"{address}: it does not say who it is ({error.code().name})", mend)
    return Finding("Ray", True, f"{address}: Ray {version}, {TAKEN if guarded else OPEN}")


def _version(address: str, token: str | None) -> str | None:
    """Of the Ray whose head is there; None where it refuses the token, or asks for one."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    proof = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            question = gcs_service_pb2.CheckAliveRequest()
            said = head.CheckAlive(question, timeout=ANSWER_SECONDS, metadata=proof)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return None
            raise
    version: str = said.ray_version
    return version


def _dashboard(address: str | None) -> Iterator[Finding]:
    if address is None:
        found = "none named; to ask the one that ingot submit would: ingot doctor --to http://HOST:8265"
        yield Finding("Ray dashboard", True, found)
        return
    from ingot.services.jobs.api import Jobs

    try:
        jobs = Jobs(address, ANSWER_SECONDS)
        count, taken = len(jobs.list()), TAKEN if jobs.guarded() else OPEN
    except IngotError as error:
        yield problem("Ray dashboard", error)
    else:
        yield Finding("Ray dashboard", True, f"{address}: {taken}; runs submitted there: {count}")


def _place() -> str | None:
    """Where Ray finds the token: "" for nowhere, None where it looks in vain where it was told to."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader
    from ray.exceptions import AuthenticationError

    try:
        if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
            return ""
    except AuthenticationError:
        return None
    given = (name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name))
    return next(given, "~/.ray/auth_token")


def _sent() -> str | None:
    """The token that this process sends to a cluster named by its address."""
    from ray._private.authentication.authentication_token_setup import (
        AuthenticationMode,
        AuthenticationTokenLoader,
        get_authentication_mode,
    )

    if get_authentication_mode() != AuthenticationMode.TOKEN or not _place():
        return None
    token: str = AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    return token
