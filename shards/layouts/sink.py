"""Binary output file of shard writers with a running sha256 and checksums of written ranges."""

import hashlib
import io
import zlib
from typing import TYPE_CHECKING, BinaryIO

from im2sp.shards.layouts.shard_info import BatchInfo

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Sink(io.RawIOBase):
    """Write-only binary file; closing it leaves the wrapped file open."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._sha256 = hashlib.sha256()
        self._recent: list[bytes] = []
        self._recent_offset = 0
        self._position = 0

    def write(self, b: "ReadableBuffer", /) -> int:
        """Append bytes."""
        data = bytes(b)
        self._file.write(data)
        self._sha256.update(data)
        self._recent.append(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def writable(self) -> bool:
        """Yes."""
        return True

    def range_info(self, offset: int, size_bytes: int, num_samples: int) -> BatchInfo:
        """Describe a range written since the last call, and drop the kept bytes before its end."""
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
        """sha256 of all bytes written, in hex."""
        return self._sha256.hexdigest()
