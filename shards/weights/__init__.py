"""Reading of weights files of every published format, without running code in them.

Formats: safetensors; numpy's `.npy`; files of `torch.save`, as a zip (since torch 1.6) or legacy; a
plain pickle, also compressed by joblib. Tensors are returned as numpy arrays (see `rebuild` for
bfloat16), mapped from the file, so unused ones are not read. This package is part of `shards` so
that all packages can use it; callers convert the arrays to torch tensors.
"""

# The content of a weights file has no static type.
# pyright: reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

import io
import json
import mmap
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards.errors import memory_limit
from im2sp.shards.files import open_regular
from im2sp.shards.weights.compressed import compression_of, decompress
from im2sp.shards.weights.opcodes import Budget
from im2sp.shards.weights.pickles import Record, RefusedGlobalError, WeightsError
from im2sp.shards.weights.rebuild import BFLOAT16
from im2sp.shards.weights.torch_files import TorchZip, read_pickles

# First instructions of pickles that name no protocol: a global, a mark, a list, a dict.
_OLD_PICKLE_STARTS = frozenset({b"c", b"(", b"]", b"}"})
MAX_MODULE_DEPTH = 100
MAX_TENSORS = 100_000
# Parts of a checkpoint that hold its tensors.
_PARTS = ("state_dict", "model", "module")
# Memory of the header of safetensors per byte of it, while it is parsed.
_HEADER_FACTOR = 24


@dataclass(frozen=True)
class Weights:
    """Content of a weights file.

    `content` consists of dicts, lists, tuples, scalars, arrays and `Record`s.
    `metadata` is safetensors' text table, empty for other formats.
    """

    path: Path
    form: str
    content: Any
    metadata: dict[str, str] = field(default_factory=dict)

    def arrays(self, content: Any = None) -> dict[str, np.ndarray]:
        """Named arrays of the content, or of a part of it; see `named_arrays`.

        Raises:
            WeightsError: A module nested without end, or more numbers than `memory_limit` allows.
        """
        with _one_line_errors(self.path):
            arrays = named_arrays(self.content if content is None else content)
            # As float32, to which models convert them; several may share the file's numbers.
            taken = sum(max(array.nbytes, 4 * array.size) for array in arrays.values())
            if taken > memory_limit(self.path.stat().st_size):
                raise ValueError(f"its {len(arrays)} tensors have {taken:,} bytes, shared in part")
            return arrays


def read_weights(path: str | Path) -> Weights:
    """Read a weights file of any known format; see the module's docstring.

    Raises:
        WeightsError: No such file, unknown format, damaged, or with content other than data; one
            line.
    """
    path = Path(path)
    try:
        file = open_regular(path)
    except OSError as error:
        found = str(error.strerror).partition(",")[0]
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            found = "found nothing"
        raise WeightsError(f"{path}: {found} here, expected a weights file") from None
    with _one_line_errors(path), file:
        head = file.read(16)
        header_bytes = int.from_bytes(head[:8], "little")
        file_bytes = os.fstat(file.fileno()).st_size
        if head[8:9] == b"{" and header_bytes < file_bytes:
            if header_bytes * _HEADER_FACTOR > memory_limit(file_bytes):
                raise ValueError(f"a header of {header_bytes:,} bytes in {file_bytes:,} bytes")
            return _read_safetensors(path)
        if head.startswith(b"\x93NUMPY"):
            return Weights(path, "npy", np.load(path, mmap_mode="c", allow_pickle=False))
        if head.startswith(b"PK\x03\x04"):
            zipped = TorchZip(file, map_bytes(path))
            return Weights(path, "torch zip", zipped.load(Budget(file_bytes)))
        if (compression := compression_of(head)) is not None:
            data = decompress(path, compression)
            if not data.startswith(b"\x80"):
                raise ValueError(f"{compression} data without a pickle in them")
            budget = Budget(file_bytes, taken_bytes=len(data))
            form, content = read_pickles(io.BytesIO(data), np.frombuffer(data, np.uint8), budget)
            return Weights(path, f"{form}, {compression}", content)
        if head.startswith(b"\x80") or head[:1] in _OLD_PICKLE_STARTS:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped_file:
                budget = Budget(file_bytes)
                return Weights(path, *read_pickles(mapped_file, map_bytes(path), budget))
        raise ValueError(f"not a weights file: it starts with {_describe_head(head)}")


@contextmanager
def _one_line_errors(path: Path) -> Generator[None]:
    try:
        yield
    except WeightsError:
        raise
    except RefusedGlobalError as error:
        raise WeightsError(
            f"{path}: holds {error}, expected only tensors and plain containers; none of it was"
            " run. Use a file with only the weights, such as safetensors"
        ) from None
    except Exception as error:
        # Any error caused by a hostile or truncated file is reported with the file's name.
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise WeightsError(f"{path}: {what}; expected a whole weights file") from error


def _describe_head(head: bytes) -> str:
    if head.startswith(b"version https://"):
        return "a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "a web page; the download has failed"
    return f"{head[:8]!r}" if head else "nothing (it is empty)"


def _read_safetensors(path: Path) -> Weights:
    """Read header length, JSON header and numbers; the library validates the header."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    mapped = map_bytes(path)
    start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    entries = json.loads(mapped[8:start].tobytes())
    entries.pop("__metadata__", None)
    arrays = {}
    for name, entry in entries.items():
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{name[:60]!r} has unknown type {entry['dtype']}")
        first, end = entry["data_offsets"]
        data = mapped[start + first : start + end]
        if data.ctypes.data % dtype.itemsize:
            data = data.copy()
        arrays[name] = data.view(dtype).reshape(entry["shape"])
    return Weights(path, "safetensors", arrays, metadata)


_SAFETENSORS_DTYPES = {
    "BF16": BFLOAT16,
    "BOOL": np.dtype("?"),
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
}


def map_bytes(path: Path) -> np.ndarray:
    """Mapped bytes of a file; writing to them does not change the file."""
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="c"))


def named_arrays(content: Any) -> dict[str, np.ndarray]:
    """Tensors of a state dict, a checkpoint that contains one, or a pickled module.

    A module's tensors have their names in its `state_dict()`; non-persistent buffers are included.
    A single tensor or array has the name "".

    Raises:
        ValueError: A module nested without end.
    """
    for _ in range(MAX_MODULE_DEPTH):
        parts = (content.get(key) for key in _PARTS) if isinstance(content, dict) else ()
        part = next((part for part in parts if isinstance(part, dict | Record)), None)
        if part is None:
            break
        content = part
    else:
        raise ValueError("its state is nested endlessly")
    if isinstance(content, Record):
        return module_arrays(content)
    named = content if isinstance(content, dict) else {"": content}
    converted: dict[int, np.ndarray | None] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            continue
        if id(value) not in converted:  # the same array may have several names
            converted[id(value)] = _as_numbers(value)
        if (array := converted[id(value)]) is not None:
            arrays[name] = array
    return arrays


def _as_numbers(value: np.ndarray) -> np.ndarray | None:
    """The array in native byte order; None if torch lacks its type."""
    if value.dtype == BFLOAT16:
        return value
    if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
        return None
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def module_arrays(module: Record) -> dict[str, np.ndarray]:
    """Parameters and buffers of a pickled `nn.Module`, by dotted name."""
    arrays: dict[str, np.ndarray] = {}
    waiting: list[tuple[str, Record, int]] = [("", module, 0)]
    num_seen = name_size = 0
    while waiting:
        prefix, current, depth = waiting.pop()
        num_seen += 1
        if depth > MAX_MODULE_DEPTH or max(num_seen, name_size // 64) > MAX_TENSORS:
            raise ValueError("its modules are nested too deeply or endlessly")
        for table in ("_parameters", "_buffers"):
            for name, value in _dict(current.state.get(table)).items():
                if isinstance(name, str) and isinstance(value, np.ndarray):
                    name_size += len(prefix) + len(name)
                    arrays[prefix + name] = value
        for name, child in _dict(current.state.get("_modules")).items():
            if isinstance(name, str) and isinstance(child, Record):
                name_size += len(prefix) + len(name)
                waiting.append((f"{prefix}{name}.", child, depth + 1))
    return arrays


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def describe(content: Any) -> str:
    """Short description of a file's content, for messages."""
    try:
        tensors = named_arrays(content)
    except ValueError as error:
        return f"no tensors: {error}"
    if list(tensors) == [""]:
        return f"one tensor of shape {list(tensors[''].shape)}"
    if tensors:
        guess = ""
        for part, what in _KNOWN_PARTS.items():
            if any(part in name for name in tensors):
                guess = f" (it looks like {what})"
                break
        plural = "tensor" if len(tensors) == 1 else "tensors"
        return f"{len(tensors)} {plural} such as {min(tensors)[:80]!r}{guess}"
    if isinstance(content, Record):
        return f"an object of {content.kind} without tensors"
    return f"a {type(content).__name__} without tensors"


_KNOWN_PARTS = {
    "to_patch_embedding": "a ViT-VQGAN",
    "feature_extractor.conv_layers": "HuBERT or wav2vec 2.0",
    "conv_pre.": "a HiFi-GAN vocoder",
    "git.": "GIT",
    "stem_adapter": "a SeiT classifier",
    "cluster_centers": "k-means centroids",
    "quantize.embedding": "a convolutional VQGAN",
}
