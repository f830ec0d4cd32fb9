"""The file that shard writers write to: hashes what passes, and knows the last bytes again."""

import hashlib
import zlib
from typing import BinaryIO

from im2sp.shards.manifest import BatchInfo


class Sink:
    """A write-only binary file with a running sha256, which can checksum what it just wrote."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._recent: list[bytes] = []
        self._recent_offset = 0
        self._position = 0

    def write(self, data: bytes) -> int:
        """Append bytes."""
        data = bytes(data)
        self._file.write(data)
        self._sha256.update(data)
        self._recent.append(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Do nothing; the owner of the file flushes it."""

    def close(self) -> None:
        """Do nothing; the owner of the file closes it."""

    def readable(self) -> bool:
        """No."""
        return False

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """No."""
        return False

    def range_info(self, offset: int, size_bytes: int, num_samples: int) -> BatchInfo:
        """Describe a range written since the last call, and forget what lies before its end."""
        recent = b"".join(self._recent)
        start = offset - self._recent_offset
        assert 0 <= start <= start + size_bytes <= len(recent)
        end = start + size_bytes
        self._recent = [recent[end:]]
        self._recent_offset = offset + size_bytes
        return BatchInfo(
            offset=offset,
            size_bytes=size_bytes,
            num_samples=num_samples,
            crc32=zlib.crc32(memoryview(recent)[start:end]),
        )

    def sha256(self) -> str:
        """sha256 of all that was written, in hex."""
        return self._sha256.hexdigest()
