"""Which devices are here and how much memory they have: every question to CUDA and to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from peftlab.errors import MissingRequirementError

PROC = Path("/proc/self")
# The limit and the use of a container's memory, in the two generations of Linux control groups.
CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
SNAPSHOT_EVENTS = 200_000
NVIDIA_SMI_SECONDS = 5.0


def has_cuda() -> bool:
    """Return whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def count_cuda_devices() -> int:
    """Return the number of CUDA devices that torch sees."""
    return torch.cuda.device_count() if has_cuda() else 0


def pick_device(wanted: str) -> torch.device:
    """Return the device of this process for `auto`, `cpu` or `cuda`.

    Raises MissingRequirementError for `cuda` on a machine without it.
    """
    if wanted == "cpu" or (wanted == "auto" and not has_cuda()):
        return torch.device("cpu")
    if not has_cuda():
        raise MissingRequirementError("run.device: cuda was asked for, but torch sees no CUDA device; use cpu or auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock that is read next is right; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return the device's name as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def list_devices() -> list[dict[str, Any]]:
    """Return the CPU and every CUDA device: `device`, `name`, `bytes`, and the CPU's `cores`."""
    cpu = {"device": "cpu", "name": platform.machine(), "cores": os.cpu_count(), "bytes": total_host_bytes()}
    found = [torch.cuda.get_device_properties(index) for index in range(count_cuda_devices())]
    return [cpu, *({"device": f"cuda:{i}", "name": one.name, "bytes": one.total_memory} for i, one in enumerate(found))]


def cuda_capability(device: torch.device) -> tuple[int, int]:
    """Return a CUDA device's compute capability."""
    return torch.cuda.get_device_capability(device)


def total_bytes(device: torch.device) -> int:
    """Return the whole memory of a device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else total_host_bytes()


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that tensors can use now; on the CPU what the machine can give without swapping.

    What torch's allocator keeps of earlier tensors is free: it uses that first, or gives it back.
    """
    if device.type != "cuda":
        return available_host_bytes()
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def used_bytes(device: torch.device) -> int:
    """Return the bytes in use by this process now: allocated on CUDA, resident on the CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def total_host_bytes() -> int:
    """Return the machine's memory."""
    return psutil.virtual_memory().total


def available_host_bytes() -> int:
    """Return the machine's memory that can be used without swapping, whatever a container's limit is."""
    return psutil.virtual_memory().available


def free_host_bytes() -> int:
    """Return the host memory that this process can still use: the machine's, or less in a container."""
    free = available_host_bytes()
    for limit, usage in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
            free = min(free, int(limit.read_text()) - int(usage.read_text()))
    return max(free, 0)


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


def return_freed_memory() -> None:
    """Give the system what was freed on the CPU, where the C library keeps it for later (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def reset_resident_peak() -> None:
    """Reset the kernel's peak of resident memory (Linux; elsewhere the peak is the process's whole life's)."""
    with contextlib.suppress(OSError):
        (PROC / "clear_refs").write_text("5")


def resident_peak_bytes() -> int:
    """Return the process's peak resident bytes since the last reset."""
    with contextlib.suppress(OSError):
        for line in (PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes()


def reset_allocator_peaks(device: torch.device) -> None:
    """Reset the peaks of CUDA's allocator; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def read_allocator(device: torch.device) -> tuple[Mapping[str, int], int, int]:
    """Return the statistics of CUDA's allocator, and the free and the total bytes of the whole device."""
    return (torch.cuda.memory_stats(device), *torch.cuda.mem_get_info(device))


def other_processes_bytes(device: torch.device) -> int | None:
    """Return what other processes use of a CUDA device, as nvidia-smi lists them; None where that is not known."""
    command = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return sum_others(listed, str(torch.cuda.get_device_properties(device).uuid), os.getpid())


def sum_others(listed: str, uuid: str, own: int) -> int | None:
    """Return the bytes of the processes on the device `uuid` beside `own`, from lines of uuid, number and MiB.

    None unless `own` is among them: a container's numbers are not the machine's.
    """
    rows = [[part.strip() for part in line.split(",")] for line in listed.splitlines() if uuid in line]
    sizes = {int(number): int(size) * 2**20 for _, number, size in rows if size.isdigit()}
    return sum(sizes.values()) - sizes[own] if own in sizes else None


def start_allocation_history() -> None:
    """Let CUDA's allocator record what it allocates and frees."""
    # Python's stacks alone: C++ ones, the default, cost milliseconds an event to write and are read by nobody here.
    torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS, stacks="python")


def stop_allocation_history(path: Path) -> None:
    """Write what CUDA's allocator recorded to `path`, in torch's own format, and stop recording."""
    torch.cuda.memory._dump_snapshot(str(path))
    torch.cuda.memory._record_memory_history(enabled=None)


def capture_cuda_randomness() -> list[torch.Tensor]:
    """Return the random state of every CUDA device, in their order."""
    return torch.cuda.get_rng_state_all() if has_cuda() else []


def restore_cuda_randomness(states: Sequence[torch.Tensor]) -> None:
    """Restore the random states of as many CUDA devices as there are states."""
    for index, state in enumerate(states):
        torch.cuda.set_rng_state(state, index)
