"""What runs in Ray Serve's proxy before a request is routed to a replica: its own answers get the form of the
OpenAI API, headers that only Ray's own clients should send are removed, and /health is answered without
waiting in a replica's queue. Once it is known that no replica runs, new requests are refused with 503: Ray
would keep them until one has started, which takes longer than most clients wait.

Ray Serve imports `middlewares` where the environment of the proxy's process has
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=ingot.services.serve.proxy:middlewares."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from ingot.services.serve.limits import BODY_BYTES

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "ingot.services.serve.proxy:middlewares"

# With the first a client's departure would not end its request, with the second a client sets the time limit.
CONTROL_HEADERS = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")
HEALTH_SECONDS = 1  # for which an answer about the replicas stays valid, and which it may take
MESSAGES = {
    408: "the request took longer than the server allows",
    413: f"the body is larger than {BODY_BYTES:,} bytes",
    429: "too many requests are waiting; try again later",
    500: "the server failed on this request",
    503: "no replica can answer now; try again later",
}
RETRY_AFTER = {408: b"1", 429: b"1", 503: b"2"}  # seconds
UNROUTED = "Ping http://.../-/routes"  # stands in Ray's answer where it knows no application for the path


def middlewares() -> list[Middleware]:
    """The layers around Ray Serve's proxy."""
    from starlette.middleware import Middleware

    return [Middleware(ProxyLayer)]


class ProxyLayer:
    """The one layer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._asked: asyncio.Future[bool] | None = None  # whether replicas run
        self._asked_at = 0.0
        self._none_run = False  # what the last answer was

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in CONTROL_HEADERS]
        if scope["path"] == "/health":
            await self._health(send)
        elif _declared_length(scope) > BODY_BYTES:
            await _send_error(413, send)
        elif await self._none_runs():
            await _send_error(503, send)
        else:
            answer = _Rewriter(send)
            await self.app(scope, receive, answer)
            if not answer.begun:  # a replica answers its own failures, so this one has ended
                await _send_error(503, send)

    async def _health(self, send: Send) -> None:
        """200 where a replica runs, else 503; no replica is asked, so the answer waits in no queue."""
        if await self._wait(self._ask()):
            await _send_json(200, {"status": "ok"}, send)
        else:
            await _send_error(503, send)

    async def _none_runs(self) -> bool:
        """Whether it is known that no replica runs. Only where that was so the last time does a request wait
        for a new answer; where it can't be had, Ray decides."""
        asked = self._ask()
        return self._none_run and await self._wait(asked) is False

    def _ask(self) -> asyncio.Future[bool]:
        """The latest question to Ray Serve's controller, a new one where the answer is too old."""
        if self._asked is None or (self._asked.done() and time.monotonic() > self._asked_at + HEALTH_SECONDS):
            self._asked = asyncio.ensure_future(asyncio.to_thread(replicas_run))
            self._asked.add_done_callback(self._note)
            self._asked_at = time.monotonic()
        return self._asked

    def _note(self, asked: asyncio.Future[bool]) -> None:
        self._none_run = not asked.cancelled() and asked.exception() is None and not asked.result()

    @staticmethod
    async def _wait(asked: asyncio.Future[bool]) -> bool | None:
        """The answer, or None where it does not come in time or is an error."""
        done, _ = await asyncio.wait([asked], timeout=HEALTH_SECONDS)
        return asked.result() if done and asked.exception() is None else None


def replicas_run() -> bool:
    """Whether Ray Serve's controller counts a running replica of every deployment."""
    from ray import serve

    deployments = [
        deployment
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    ]
    return bool(deployments) and all(each.replica_states.get("RUNNING", 0) > 0 for each in deployments)


class _Rewriter:
    """Passes messages on, except an answer of Ray's own: a failure in plain text, which no replica sends."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.start: Message | None = None  # of an answer that is replaced
        self.body = b""
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        if message["type"] == "http.response.start" and self._of_ray(message):
            self.start = message
        elif self.start is None or message["type"] != "http.response.body":
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                status = self.start["status"]
                if status == 404 and UNROUTED.encode() in self.body:
                    status = 503  # while no route is known, as at the start and at the end
                await _send_error(status, self.send)

    @staticmethod
    def _of_ray(message: Message) -> bool:
        plain = dict(message.get("headers", [])).get(b"content-type", b"").startswith(b"text/plain")
        return message["status"] >= 400 and plain


def _declared_length(scope: Scope) -> int:
    length = dict(scope["headers"]).get(b"content-length", b"0")
    return int(length) if length.isdigit() and len(length) < 19 else 0


async def _send_error(status: int, send: Send) -> None:
    error = {
        "message": MESSAGES.get(status, "the server can't answer this request"),
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": None,
        "code": None,
    }
    retry = [(b"retry-after", RETRY_AFTER[status])] if status in RETRY_AFTER else []
    await _send_json(status, {"error": error}, send, retry)


async def _send_json(
    status: int, body: dict[str, Any], send: Send, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    raw = json.dumps(body).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *(headers or [])]})
    await send({"type": "http.response.body", "body": raw})
