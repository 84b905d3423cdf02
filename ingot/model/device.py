"""What a device can do at most, and how much of its memory was used."""

from __future__ import annotations

import resource
import sys
import time

import torch

from ingot.model.parallel import Precision

# Dense bf16 FLOPs a second, from NVIDIA's data sheets; the first name that the device's contains counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


def peak_flops(device: torch.device, precision: Precision, seconds: float = 2.0) -> tuple[float, str]:
    """FLOPs a second that the device can do at most, and where the number is from: a data sheet or, for a
    device without one, about `seconds` of matrix products, on the threads that this process has."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for part, flops in PEAKS.items():
            if part in name:
                return flops, f"dense {precision}, by NVIDIA's data sheet"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size, best, products = 128, float("inf"), 0
    began = now = time.perf_counter()
    while not products or now - began < seconds:
        matrix = torch.randn(size, size, device=device).to(dtype)
        synchronize(device)
        started = time.perf_counter()
        matrix @ matrix
        synchronize(device)
        now = time.perf_counter()
        best, products = min(best, (now - started) / size**3), products + 1
        # Larger ones come nearer to the peak; a CPU without instructions for bf16 takes seconds for them.
        if size < 8192 and now - started < seconds / 40:
            size *= 2
    return 2 / best, f"measured: the best of {products} products of {precision} matrices"


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has used so far: of PyTorch's CUDA allocator, or resident ones."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
