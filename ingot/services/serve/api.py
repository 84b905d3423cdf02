"""What clients see: the OpenAI API's models, completions and chat (https://platform.openai.com/docs/api-reference),
its form of errors, and a health check.

No exception leaves the application: Ray Serve would carry it to the proxy, and its text to the client."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ingot.services.serve.adapter import FAILED, REFUSALS, Answer, Engine, refusal
from ingot.services.serve.limits import BODY_BYTES, NAME_CHARACTERS, Refused, parse_body
from ingot.services.serve.settings import ServedModel

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("ray.serve")

INTERNAL = "the server failed on this request; its log says why"


def build_api(engine: Engine, served: ServedModel) -> FastAPI:
    """The application that answers for this engine."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(NothingEscapes, dead=lambda: engine.dead)
    for kind in REFUSALS:
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    cards = {
        name: {"id": name, "object": "model", "created": served.created, "owned_by": "ingot"}
        for name in served.names
    }

    @app.get("/health")
    async def health() -> Response:
        try:
            await engine.check_health()
        except Exception:
            return died()
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": list(cards.values())}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name not in cards:
            raise Refused(404, f"The model `{name}` does not exist.", "model", "model_not_found")
        return cards[name]

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        return _respond(await engine.complete(named(parse_body(await read_body(http)))))

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request) -> Response:
        return _respond(await engine.chat(named(parse_body(await read_body(http)))))

    def named(body: dict[str, Any]) -> dict[str, Any]:
        """The body, whose model must be one that is served."""
        model = body.get("model")
        if isinstance(model, str) and model not in cards:
            shown = model if len(model) <= NAME_CHARACTERS else model[:NAME_CHARACTERS] + "…"
            raise Refused(404, f"The model `{shown}` does not exist.", "model", "model_not_found")
        return body

    return app


async def warm_up(engine: Engine, model: str) -> int:
    """Answers sampled requests, as the first of a kind may compile; returns the tokens that came. A model
    that can't answer is found here, before anyone asks it."""
    tokens = 0
    body = {"model": model, "prompt": "warm", "max_tokens": 2, "ignore_eos": True, "temperature": 1.0}
    for choice in ({}, {"top_p": 0.9, "top_k": 20}):
        answer = await engine.complete({**body, **choice})
        assert isinstance(answer, BaseModel)
        tokens += answer.model_dump()["usage"]["completion_tokens"]
    return tokens


async def read_body(http: Request) -> bytes:
    """The body. Raises Refused as soon as it is larger than BODY_BYTES."""
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise Refused(413, f"the body is larger than {BODY_BYTES:,} bytes")
    return bytes(body)


def error_response(
    status: int, message: str, parameter: str | None = None, code: str | None = None
) -> JSONResponse:
    """An error in the form OpenAI gives it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": message, "type": kind, "param": parameter, "code": code}
    return JSONResponse({"error": body}, status)


def died() -> JSONResponse:
    """What is answered once the engine is dead."""
    response = error_response(503, "the engine has died; its replica will be replaced")
    response.headers["retry-after"] = "2"
    return response


class NothingEscapes:
    """The outermost layer: what no handler caught is logged and answered with 500, without its text. Once the
    engine is dead the answer is 503: the request may be sent again, and another replica will take it."""

    def __init__(self, app: ASGIApp, dead: Callable[[], bool]) -> None:
        self.app = app
        self.dead = dead

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http":
                raise
            logger.exception("a request failed: %s %s", scope["method"], scope["path"])
            if not begun:
                answer = died() if self.dead() else error_response(500, INTERNAL)
                await answer(scope, receive, send)


def _respond(answer: Answer) -> Response:
    if isinstance(answer, BaseModel):
        return JSONResponse(answer.model_dump())
    return StreamingResponse(_events(answer), media_type="text/event-stream")


async def _events(lines: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async for line in lines:
        if line.startswith(FAILED):
            logger.error("a stream failed: %s", line)
            failure = error_response(500, INTERNAL).body
            yield f"data: {bytes(failure).decode()}\n\n"
        else:
            yield line


async def _refused(_: Request, error: Exception) -> JSONResponse:
    told = refusal(error)
    if told is None:
        logger.error("a request was refused", exc_info=error)
        told = Refused(400, "the request asks for something that this model can't do")
    return error_response(told.status, told.message, told.parameter, told.code)


async def _no_such_route(_: Request, error: Any) -> JSONResponse:
    return error_response(error.status_code, HTTPStatus(error.status_code).phrase)
