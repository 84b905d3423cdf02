"""Compressed bytes → chunks of what they hold, recognised by content and within limits."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
RATIO_FROM = 16_000_000  # bytes of output below which the ratio says nothing: a small file may repeat itself
_INPUT, _OUTPUT = 2048, 4096  # bytes at once; gzip makes at most 1,032 bytes of one


_LONG = (
    "its zstd window is larger than 128 MiB, which can't be read; decompress the file with zstd -d --long=31 "
    "or compress it again with --long=27 at most"
)


class Unreadable(Exception):
    """The rest of a file can't be read; its message is the reason."""


class Truncated(Unreadable):
    """The file ends too early; what came before is good."""

    def __init__(self) -> None:
        super().__init__("the compressed file is truncated")


def unpacked(path: str, data: bytes, limits: tuple[int, int] | None = None) -> Iterator[bytes]:
    """The content of gzip or zstd data, or the data itself. `limits`: the most bytes a file may hold, and
    the most times its own size. Raises Unreadable past a limit and where the data is damaged, and
    Truncated where it is cut, after all that came before."""
    if data.startswith(GZIP):
        chunks = _gzip(data)
    elif data.startswith(ZSTD):
        chunks = _zstd(data)
    elif path.lower().endswith((".gz", ".zst")):
        raise Unreadable("not a readable archive: it is named like one and holds neither gzip nor zstd")
    else:
        yield data
        return
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if limits and total > limits[0]:
            raise Unreadable(
                f"unpacks to more than {limits[0]:,} bytes; if that is right, raise most_unpacked below the "
                "source"
            )
        if limits and total > max(RATIO_FROM, limits[1] * len(data)):
            raise Unreadable(
                f"unpacks to more than {limits[1]:,} times its size; if that is right, raise most_ratio "
                "below the source"
            )
        yield chunk


def _gzip(data: bytes) -> Iterator[bytes]:
    member, place = zlib.decompressobj(31), 0
    while place < len(data) or not member.eof:
        if member.eof:
            if not data[place:].strip(b"\0"):  # padding
                return
            member = zlib.decompressobj(31)
        piece = data[place : place + _INPUT]
        if not piece:
            raise Truncated
        try:
            chunk = member.decompress(piece)
        except zlib.error as error:
            raise Unreadable(f"not a readable archive: {error}") from error
        place += len(piece) - len(member.unused_data)
        if chunk:
            yield chunk


def _zstd(data: bytes) -> Iterator[bytes]:
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.py_buffer(data), "zstd")
    while True:
        try:
            chunk = stream.read(_OUTPUT)
        except OSError as error:
            if str(error).startswith("Truncated"):
                raise Truncated from error
            if "requires too much memory" in str(error):
                raise Unreadable(_LONG) from error
            raise Unreadable(f"not a readable archive: {error}") from error
        if not chunk:
            return
        yield chunk
