"""Memory that was freed, given back to the system.

Batches differ in length, so on a CPU each step frees tensors of other sizes than the next one asks
for, and glibc keeps them: a run of the preset `mini` held 8 GB after an hour. Giving back what was
free left 1.2 GB of 2.9 after 120 steps and took 50 ms each time.
"""

import ctypes

EVERY_STEPS = 20
"""Steps after which a training run on a CPU gives its free memory back."""


def give_back_free_memory() -> bool:
    """Give freed memory of the C library back; False where it (musl, macOS) has no way to."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    return True
