"""What Ray Serve's proxy answers itself, in the form of the OpenAI API."""

from __future__ import annotations

import asyncio
import importlib
import itertools
from types import SimpleNamespace

import httpx
import pytest
from ray.serve._private import http_util
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from ingot.services.serve import proxy
from ingot.services.serve.limits import BODY_BYTES


@pytest.fixture(autouse=True)
def replicas_run(monkeypatch):
    monkeypatch.setattr(proxy, "replicas_run", lambda: True)


def ask(app, path="/v1/completions", **choices) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(proxy.ProxyLayer(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.post(path, **choices)

    return asyncio.run(go())


def test_ray_finds_the_layer(monkeypatch):
    monkeypatch.setattr(http_util, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", proxy.CALLBACK)
    options = importlib.import_module("ray.serve.config").HTTPOptions()
    [layer] = http_util.configure_http_middlewares(options).middlewares
    assert layer.cls is proxy.ProxyLayer


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_rays_plain_text_becomes_an_error_of_the_api(status):
    answer = ask(PlainTextResponse("Request dropped due to backpressure", status))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert ("retry-after" in answer.headers) == (status != 500)


def test_no_route_means_that_nothing_serves_yet_or_any_more():
    text = "Path '/v1/models' not found. Ping http://.../-/routes for available routes."
    answer = ask(PlainTextResponse(text, 404))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_a_replica_that_ended_before_it_answered_is_503():
    async def silent(scope, receive, send):
        return

    answer = ask(silent)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert answer.headers["retry-after"] == "2"


def test_requests_are_refused_at_once_only_while_it_is_known_that_no_replica_runs(monkeypatch):
    running: list[bool | Exception] = [True]

    def answer() -> bool:
        if isinstance(running[-1], Exception):
            raise running[-1]
        return running[-1]

    async def go() -> None:
        transport = httpx.ASGITransport(proxy.ProxyLayer(JSONResponse({})))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:

            async def status(path: str = "/v1/models") -> int:
                return (await client.get(path)).status_code

            assert (await status("/health"), await status()) == (200, 200)
            running.append(False)
            assert (await status("/health"), await status()) == (503, 503)
            assert (await client.get("/v1/models")).headers["retry-after"] == "2"
            running.append(True)
            assert await status() == 200  # the first request after the replica is back
            running.append(RuntimeError("no controller"))
            assert (await status("/health"), await status()) == (503, 200)

    monkeypatch.setattr(proxy, "replicas_run", answer)
    ages = itertools.count(step=2 * proxy.HEALTH_SECONDS)  # each answer is too old for the next request
    monkeypatch.setattr(proxy, "time", SimpleNamespace(monotonic=lambda: next(ages)))
    asyncio.run(go())


def test_answers_of_a_replica_pass_unchanged():
    async def parts():
        for part in ("data: 1\n\n", "data: 2\n\n"):
            yield part

    assert ask(StreamingResponse(parts(), media_type="text/event-stream")).text == "data: 1\n\ndata: 2\n\n"
    refused = ask(JSONResponse({"error": {"message": "own"}}, 404))
    assert (refused.status_code, refused.json()) == (404, {"error": {"message": "own"}})


def test_rays_control_headers_do_not_pass():
    async def echo(scope, receive, send):
        await JSONResponse([name.decode() for name, _ in scope["headers"]])(scope, receive, send)

    controls = {name.decode().title(): "?1" for name in proxy.CONTROL_HEADERS}
    names = ask(echo, headers={**controls, "x-request-id": "mine"}).json()
    assert "x-request-id" in names
    assert not set(names) & {name.decode() for name in proxy.CONTROL_HEADERS}


def test_ray_still_calls_its_headers_so():
    from ray.serve._private import constants

    assert [name.decode() for name in proxy.CONTROL_HEADERS] == [
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
    ]


def test_a_body_that_is_declared_too_large_does_not_reach_a_replica():
    async def fail(scope, receive, send):
        raise AssertionError("it was asked")

    assert ask(fail, content=b" " * (BODY_BYTES + 1)).status_code == 413


@pytest.mark.parametrize("state", ["running", "none", "unknown", "silent"])
def test_health_is_answered_without_a_replica(monkeypatch, state):
    async def fail(scope, receive, send):
        raise AssertionError("a replica was asked")

    def replicas_run() -> bool:
        if state == "unknown":
            raise RuntimeError("no controller")
        if state == "silent":
            proxy.time.sleep(0.5)
        return state == "running"

    monkeypatch.setattr(proxy, "replicas_run", replicas_run)
    monkeypatch.setattr(proxy, "HEALTH_SECONDS", 0.2)
    assert ask(fail, "/health").status_code == (200 if state == "running" else 503)
