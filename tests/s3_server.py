"""An S3 service on this machine: `python tests/s3_server.py PORT`, until it is killed.

moto's server with two layers around it. Conditional writes take a lock, as moto checks and stores in two
steps and under threads two writers could both win. And a key with `faults/KIND/` in it goes wrong the first
time it is asked for, as real networks and services do."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


class OneAtATime:
    """Conditional writes wait for each other."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ and "HTTP_IF_MATCH" not in environ:
            return self.application(environ, start_response)
        with self.lock:
            return list(self.application(environ, start_response))


class Faults:
    """The first request for a key below `faults/KIND/` fails. `lost-answer`: it is carried out, but its
    answer is an error; `conflict`: another write is under way; `broken-answer`: the connection breaks
    midway."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.seen: set[tuple[str, str]] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        kind = path.rpartition("faults/")[2].partition("/")[0] if "faults/" in path else ""
        wrong = {"lost-answer": "PUT", "conflict": "PUT", "broken-answer": "GET"}.get(kind) == method
        if not wrong or (method, path) in self.seen:
            return self.application(environ, start_response)
        self.seen.add((method, path))
        if kind == "conflict":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _error(start_response, "409 Conflict", "ConditionalRequestConflict")
        if kind == "lost-answer":
            list(self.application(environ, lambda *_: None))
            return _error(start_response, "500 Internal Server Error", "InternalError")
        body = b"".join(self.application(environ, start_response))
        return [body[: len(body) // 2]]  # fewer bytes than the headers promise


def _error(start_response: Any, status: str, code: str) -> Iterable[bytes]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made to fail</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    service = Faults(OneAtATime(DomainDispatcherApplication(create_backend_app)))
    run_simple("127.0.0.1", int(sys.argv[1]), service, threaded=True)
