"""Memory that was freed, given back to the system.

Batches differ in length, so on a CPU each step frees tensors of other sizes than the next one asks
for. glibc keeps all of it: without this, a run of the preset `mini` that needs 1.2 GB held 8.
"""

import ctypes

EVERY_STEPS = 100
"""Steps after which a training run on a CPU gives its free memory back."""


def give_back_free_memory() -> bool:
    """Give freed memory of the C library back; False where it (musl, macOS) has no way to."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    return True
