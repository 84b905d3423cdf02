"""A service that is silent, slow or refuses: an end within the limits, and one clear message."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ingot.errors import UsageError
from ingot.pipelines import patience
from ingot.pipelines.patience import patiently
from ingot.pipelines.store import S3Store, StoreError, open_store

WHOLE = 1.5  # seconds that an operation may take here


@contextmanager
def service(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a socket whose every connection is given to `answer` once its request has come."""
    ending = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(65536)
                    answer(connection)
                    ending.wait(0 if getattr(answer, "closes", False) else 30)
                except OSError:
                    pass

        def accept() -> None:
            while not ending.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ending.set()
            thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nContent-Type: binary/octet-stream\r\n\r\n"


def silent(connection: socket.socket) -> None:
    pass


def stalls(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"x" * 1000)


def drips(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.1)


def drips_headers(connection: socket.socket) -> None:
    for byte in HEAD * 3:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def truncates(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"x" * 1000)


resets.closes = truncates.closes = True  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    monkeypatch.setattr(patience, "SAY_SECONDS", 0.4)
    patience._said.clear()


def opened(endpoint: str, monkeypatch: pytest.MonkeyPatch, seconds: float = WHOLE) -> S3Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = open_store("s3://bucket/x", seconds)
    assert isinstance(store, S3Store)
    return store


OPERATIONS: dict[str, Callable[[S3Store], object]] = {
    "create": lambda store: store.create("a", b"bytes"),
    "read": lambda store: store.read("a"),
    "read a part": lambda store: store.read("a", 5, 10),
    "exists": lambda store: store.exists("a"),
    "list": lambda store: list(store.list("")),
    "inventory": lambda store: list(store.inventory()),
    "delete": lambda store: store.delete("a"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_service_that_accepts_and_is_silent(
    operation: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with service(silent) as endpoint:
        store, began = opened(endpoint, monkeypatch), time.monotonic()
        with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL") as caught:
            OPERATIONS[operation](store)
    assert time.monotonic() - began < 10 * WHOLE
    message = str(caught.value)
    assert message.startswith("store s3://bucket/x: can't ")
    assert endpoint in message
    assert "None" not in message
    assert "\n" not in message
    assert f"waiting for the store s3://bucket/x at {endpoint} for " in capfd.readouterr().err


@pytest.mark.parametrize("answer", [stalls, drips, drips_headers, resets, truncates])
def test_a_service_whose_answers_never_become_whole(
    answer: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(answer) as endpoint:
        store, began = opened(endpoint, monkeypatch), time.monotonic()
        with pytest.raises(StoreError, match="can't read a: ") as caught:
            store.read("a")
    assert time.monotonic() - began < 10 * WHOLE
    message = str(caught.value)
    assert endpoint in message
    assert "None" not in message
    assert "check AWS_ENDPOINT_URL and the network" in message
    assert "\n" not in message


def test_a_transfer_that_moves_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    size, block = 1 << 20, 1 << 16

    def steady(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // block):
            connection.sendall(b"y" * block)
            time.sleep(0.15)

    with service(steady) as endpoint:
        store, began = opened(endpoint, monkeypatch), time.monotonic()
        assert store.read("a") == b"y" * size
    assert time.monotonic() - began > WHOLE


def refusal(status: str, code: str, headers: str = "") -> Callable[[socket.socket], None]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>" if code else ""

    def answer(connection: socket.socket) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        connection.sendall((head + body).encode())

    answer.closes = True  # type: ignore[attr-defined]
    return answer


@pytest.mark.parametrize(
    ("answer", "fix"),
    [
        (refusal("400 Bad Request", "ExpiredToken"), "the session token has expired: renew it"),
        (refusal("400 Bad Request", "InvalidToken"), "the session token is not valid"),
        (refusal("403 Forbidden", "RequestTimeTooSkewed"), "this machine's clock differs"),
        (refusal("403 Forbidden", "AccessDenied"), "check the credentials and their rights on this bucket"),
        (refusal("403 Forbidden", "InvalidAccessKeyId"), "check AWS_ACCESS_KEY_ID"),
        (refusal("403 Forbidden", "SignatureDoesNotMatch"), "AWS_SECRET_ACCESS_KEY"),
        (refusal("404 Not Found", "NoSuchBucket"), "make the bucket"),
        (
            refusal("400 Bad Request", "InvalidLocationConstraint", "x-amz-bucket-region: eu-west-1\r\n"),
            "another region: set AWS_DEFAULT_REGION=eu-west-1",
        ),
        (
            refusal("302 Found", "", "Location: http://login.example/\r\n"),
            "it redirects every request",
        ),
        (refusal("507 Insufficient Storage", "XMinioStorageFull"), "make room on the service's disks"),
    ],
)
@pytest.mark.parametrize("operation", ["create", "read", "list"])
def test_what_a_service_refuses_is_explained(
    answer: Callable[[socket.socket], None], fix: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(answer) as endpoint:
        store = opened(endpoint, monkeypatch, seconds=20)
        with pytest.raises(StoreError) as caught:
            OPERATIONS[operation](store)
    assert fix in str(caught.value)
    assert endpoint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_look_whose_answer_has_no_body_is_explained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with service(refusal("400 Bad Request", "ExpiredToken")) as endpoint:
        store = opened(endpoint, monkeypatch, seconds=20)
        with pytest.raises(StoreError, match="the session token has expired"):
            store.exists("a")


def test_a_service_that_is_no_s3_service(monkeypatch: pytest.MonkeyPatch) -> None:
    def page(connection: socket.socket) -> None:
        body = b"<html><p>hello</html>"
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)

    page.closes = True  # type: ignore[attr-defined]
    with service(page) as endpoint:
        store = opened(endpoint, monkeypatch, seconds=20)
        with pytest.raises(StoreError, match="check that AWS_ENDPOINT_URL is an S3 service's"):
            list(store.list(""))


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGOT_STORE_SECONDS", text)
    with pytest.raises(UsageError, match="INGOT_STORE_SECONDS"):
        open_store("s3://bucket/x")


def test_an_error_of_the_work_is_its_caller_s(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        patiently(fail, "it", 1)
    assert patiently(lambda: 3, "it", 1) == 3
    assert capfd.readouterr().err == ""
