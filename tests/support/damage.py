"""Damaged copies of a file, and the errors of their reader."""

from pathlib import Path

from im2sp.shards.weights.pickles import WeightsError


def refusals_of_flipped_bytes(path: Path, data: bytes, read) -> list[str]:
    """Write `data` to `path` with each byte changed in turn; return the errors of `read`."""
    messages = []
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x15
        path.write_bytes(flipped)
        try:
            read(path)
        except WeightsError as error:
            messages.append(str(error))
    return messages
