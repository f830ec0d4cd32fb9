"""Token streams of SeiT (naver-ai/seit): ImageNet as gzipped bytes of codes.

`data.bin` holds the codes of all images, a byte each, in raster order. Codes of 255 and more are
the byte 255 and then the code less 255. `index.npy`, beside it, holds the start of each image and
the end of the last. Both are gzipped. A file of labels has one number per line.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import ShardError, UnitColumn
from im2sp.shards.files import read_text
from im2sp.tools.converting.arrays import read_npy
from im2sp.tools.converting.records import Record, Source

ESCAPE = 255
_MAX_BYTES = 1 << 34
_CHUNK_BYTES = 1 << 24


def read_seit(path: Path, labels: Path | None, source: Source) -> Iterator[Record]:
    """Samples of a stream.

    Args:
        path: `..data.bin`, with `..index.npy` in the same folder.
        labels: File of labels for a column `label`, or None.
        source: Settings; its first column is that of the units.

    Raises:
        ValueError: A file is missing or damaged, or the files do not belong together.
    """
    if not path.name.endswith("data.bin"):
        raise ValueError(f"{path}: expected a file that ends with data.bin, as SeiT names it")
    index_path = path.with_name(path.name.removesuffix("data.bin") + "index.npy")
    try:
        starts = read_npy(_unzipped(index_path)).astype(np.int64)
    except ShardError as error:
        raise ValueError(f"{index_path}: {error}") from None
    data = np.frombuffer(_unzipped(path), np.uint8)
    is_ascending = starts.ndim == 1 and starts.size > 0 and bool((np.diff(starts) >= 0).all())
    if not is_ascending or starts[0] < 0 or starts[-1] > data.size:
        raise ValueError(
            f"{index_path}: no ascending starts within the {data.size:,} bytes of {path.name}"
        )
    numbers = _labels(labels, starts.size - 1)
    spec = source.specs[0]
    assert isinstance(spec.column, UnitColumn)
    shape = spec.column.shape
    width = len(str(starts.size))
    for i in range(starts.size - 1):
        coded = data[starts[i] : starts[i + 1]]
        values: dict[str, Any] = {spec.name: lambda coded=coded: _shaped(decode(coded), shape)}
        if numbers is not None:
            values["label"] = lambda number=numbers[i]: number
        yield Record(
            name=f"{path}: image {i}",
            key=f"{path.name.removesuffix('data.bin').strip('_-.') or 'image'}-{i:0{width}d}",
            split=source.split,
            values=values,
        )


def decode(coded: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The (n,) codes of an image's bytes.

    Raises:
        ShardError: The last byte announces another one.
    """
    is_escape = coded == ESCAPE
    if coded.size and is_escape[-1]:
        raise ShardError("ends with the byte 255, which announces another byte")
    is_large = np.zeros(coded.size, np.bool_)
    is_large[1:] = is_escape[:-1]
    return (coded.astype(np.uint16) + np.uint16(ESCAPE) * is_large)[~is_escape]


def _shaped(codes: NDArray[np.uint16], shape: tuple[int | None, ...]) -> NDArray[np.uint16]:
    try:
        return codes.reshape([-1 if size is None else size for size in shape])
    except ValueError:
        raise ShardError(f"{codes.size} codes, expected shape {shape}") from None


def _unzipped(path: Path) -> bytes:
    content = io.BytesIO()
    try:
        with gzip.open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                content.write(chunk)
                if content.tell() > _MAX_BYTES:
                    raise ValueError(f"{path}: more than {_MAX_BYTES:,} bytes")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not gzipped, or cut ({error})") from None
    return content.getvalue()


def _labels(path: Path | None, num_images: int) -> list[int] | None:
    if path is None:
        return None
    try:
        numbers = [int(line) for line in read_text(path).split()]
    except ValueError as error:
        raise ValueError(f"{path}: expected a whole number per line ({error})") from None
    if len(numbers) != num_images:
        raise ValueError(f"{path}: {len(numbers):,} labels, expected {num_images:,}")
    return numbers
