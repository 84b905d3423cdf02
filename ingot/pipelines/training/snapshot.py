"""A process's part of a training's state as one safetensors file in main memory.

The file's layout follows from the tensors' names and shapes, so the memory for it is taken once, and each
save copies the tensors to where they stand in it: there is no other copy.
https://github.com/huggingface/safetensors describes the format."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
ALIGNMENT = 64  # of the first tensor; the format asks for 8
ROOM = 256  # bytes for the note to be longer than the first one


class Snapshot:
    """Copies of tensors, on any device, in a file's layout. `begin` names the tensors; `copy` copies them, in
    a thread beside whatever leaves them as they are; who changes them calls `wait` before."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._copied = threading.Event()
        self._copied.set()

    def begin(self, tensors: Mapping[str, Tensor]) -> None:
        """The tensors are to be copied as they are when their devices have done what they were told to do."""
        # As the format's own library has it: by width, so that each stands where its type may.
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        self._tensors = {name: tensors[name].detach() for name in names}
        self._device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        self._computed = torch.cuda.current_stream(self._device).record_event() if self._device else None
        self._copied.clear()

    def wait(self) -> None:
        """Until the tensors may change."""
        self._copied.wait()

    def copy(self, note: Mapping[str, str]) -> memoryview:
        """The file, with `note` as its metadata; the next one overwrites it."""
        try:
            places = self._begin_file(note)
            if self._computed is None:
                for name, place in places.items():
                    # Unlike PyTorch's, NumPy's copy starts no threads beside those that compute.
                    place.numpy()[:] = self._tensors[name].contiguous().flatten().view(torch.uint8).numpy()
            else:
                self._copy_from_device(places)
        finally:
            self._tensors = {}
            self._copied.set()
        assert self._buffer is not None
        return memoryview(self._buffer.numpy())

    def _begin_file(self, note: Mapping[str, str]) -> dict[str, Tensor]:
        """Writes what stands before the tensors; the bytes in which each is to be."""
        header: dict[str, object] = {"__metadata__": dict(note)}
        ends, end = {}, 0
        for name, tensor in self._tensors.items():
            start, end = end, end + tensor.nbytes
            ends[name] = end
            kind, shape = DTYPES[tensor.dtype], list(tensor.shape)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        if self._buffer is None:
            self._first = -(-(8 + len(text) + ROOM) // ALIGNMENT) * ALIGNMENT
            # Page-locked memory: a device copies into it several times faster.
            pinned = self._device is not None
            self._buffer = torch.empty(self._first + end, dtype=torch.uint8, pin_memory=pinned)
        size = self._first - 8
        if len(text) > size or self._first + end != len(self._buffer):
            raise ValueError("these tensors are not those that the file was laid out for")
        memoryview(self._buffer.numpy())[: self._first] = size.to_bytes(8, "little") + text.ljust(size)
        return {
            name: self._buffer[self._first + end - self._tensors[name].nbytes : self._first + end]
            for name, end in ends.items()
        }

    def _copy_from_device(self, places: Mapping[str, Tensor]) -> None:
        assert self._computed is not None
        stream = torch.cuda.Stream(self._device)  # beside that of the next step's computation
        stream.wait_event(self._computed)
        with torch.cuda.stream(stream):
            for name, place in places.items():
                tensor = self._tensors[name]
                place.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
        stream.synchronize()
