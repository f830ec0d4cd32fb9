import sys
from pathlib import Path

import pytest
import torch

from im2sp.trainer import memory
from im2sp.trainer.memory import trim_heap

PAGE_BYTES = 4096


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_between_used_blocks_is_returned():
    blocks = [torch.ones(25_000) for _ in range(2000)]  # 100 kB each, below any mmap threshold
    kept = blocks[::2]
    del blocks
    before = resident_bytes()
    if not trim_heap():
        pytest.skip("this C library has no malloc_trim")
    assert before - resident_bytes() > 50e6
    assert all(block[0] == 1 for block in kept)


def test_a_library_without_malloc_trim(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not trim_heap()
