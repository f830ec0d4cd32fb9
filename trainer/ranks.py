"""Processes (ranks) of a run: one, or those started by torchrun."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process and the number of processes that share a run."""

    rank: int
    """Rank of this process, from 0."""
    world_size: int
    """Number of processes."""
    device: torch.device
    """Device of this process."""

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes and prints."""
        return self.rank == 0

    def summed(self, values: Tensor) -> Tensor:
        """Sum a tensor on `device` over all processes, in place (all-reduce)."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def shared(self, number: int) -> int:
        """Return the number of rank 0 on all processes (broadcast)."""
        if self.world_size == 1:
            return number
        held = torch.tensor(number, device=self.device)
        dist.broadcast(held, 0)
        return int(held)

    def wait(self) -> None:
        """Wait until all processes get here (barrier)."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def init_distributed(device: str | None) -> Generator[Ranks]:
    """Join the process group if torchrun started this process, and leave it at the end.

    Args:
        device: torch device; by default CUDA if available. With several processes, each uses the
            GPU of its local rank.

    Raises:
        ValueError: The device does not exist, or another process ended.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    found = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size == 1:
        yield Ranks(0, 1, found)
        return
    try:
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
        yield Ranks(rank, world_size, found)
        # Not after an error: without the other processes it can abort this one.
        dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ValueError("another process of this run ended; see its message") from None
        raise


def use_tf32(enabled: bool, device: torch.device) -> None:
    """Compute this process's float32 products and convolutions on a GPU in TF32 or in float32.

    Raises:
        ValueError: TF32 is enabled on a device other than a GPU.
    """
    if enabled and device.type != "cuda":
        raise ValueError(f"--precision tf32 needs a CUDA device, found {device.type}")
    convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    for backend in (torch.backends.cuda.matmul, convolutions):
        backend.fp32_precision = "tf32" if enabled else "ieee"


def _device(name: str | None, local_rank: int) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError("there is no CUDA device")
            if device.index is None:  # set_device takes no device without an index
                device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        # Raised by torch for an unknown or absent device.
        raise ValueError(f"--device {name}: {error}") from None
    return device
