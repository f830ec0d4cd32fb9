"""The processes of a run: one, or as many as torchrun has started."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run."""

    rank: int
    """Number of this process, from 0."""
    world_size: int
    """Number of processes."""
    device: torch.device
    """Where this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes, of a tensor on `device`."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def shared(self, number: int) -> int:
        """The first process's number, on all of them."""
        if self.world_size == 1:
            return number
        held = torch.tensor(number, device=self.device)
        dist.broadcast(held, 0)
        return int(held)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined_ranks(device: str | None) -> Generator[Ranks]:
    """Join the processes that torchrun has started, if it has; leave them at the end.

    Args:
        device: As torch names it; CUDA where there is one. Of several processes each takes the GPU
            of its own number.

    Raises:
        ValueError: There is no such device.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    found = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if world_size > 1 else None)
    if world_size == 1:
        yield Ranks(0, 1, found)
        return
    dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world_size, found)
    finally:
        dist.destroy_process_group()


def _device(name: str | None, local_rank: int | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError("there is no CUDA device")
            if local_rank is not None and device.index is None:
                device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        # How torch says that it knows no such device, or that there is none.
        raise ValueError(f"--device {name}: {error}") from None
    return device
