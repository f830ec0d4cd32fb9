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
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards.weights.compressed import compression_of, decompress
from im2sp.shards.weights.pickles import Record, RefusedGlobalError, WeightsError
from im2sp.shards.weights.rebuild import BFLOAT16
from im2sp.shards.weights.torch_files import TorchZip, read_pickles

# First instructions of pickles that name no protocol: a global, a mark, a list, a dict.
_OLD_PICKLE_STARTS = frozenset({b"c", b"(", b"]", b"}"})
MAX_MODULE_DEPTH = 100
MAX_TENSORS = 1_000_000


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

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays of the content; see `named_arrays`.

        Raises:
            WeightsError: A module nested without end.
        """
        with _one_line_errors(self.path):
            return named_arrays(self.content)


def read_weights(path: str | Path) -> Weights:
    """Read a weights file of any known format; see the module's docstring.

    Raises:
        WeightsError: No such file, unknown format, damaged, or with content other than data; one
            line.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise WeightsError(f"{path}: found {found} here, expected a weights file")
    with _one_line_errors(path), path.open("rb") as file:
        head = file.read(16)
        header_bytes = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and header_bytes < path.stat().st_size:
            return _read_safetensors(path)
        if head.startswith(b"\x93NUMPY"):
            return Weights(path, "npy", np.load(path, mmap_mode="c", allow_pickle=False))
        if head.startswith(b"PK\x03\x04"):
            return Weights(path, "torch zip", TorchZip(file, map_bytes(path)).load())
        if (compression := compression_of(head)) is not None:
            data = decompress(path, compression)
            if not data.startswith(b"\x80"):
                raise ValueError(f"{compression} data without a pickle in them")
            form, content = read_pickles(io.BytesIO(data), np.frombuffer(data, np.uint8))
            return Weights(path, f"{form}, {compression}", content)
        if head.startswith(b"\x80") or head[:1] in _OLD_PICKLE_STARTS:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped_file:
                return Weights(path, *read_pickles(mapped_file, map_bytes(path)))
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
    lone = _as_numbers(content)
    if lone is not None:
        return {"": lone}
    if isinstance(content, Record):
        return module_arrays(content)
    if not isinstance(content, dict):
        return {}
    for key in ("state_dict", "model", "module"):
        if isinstance(content.get(key), dict | Record):
            return named_arrays(content[key])
    named = {name: _as_numbers(value) for name, value in content.items() if isinstance(name, str)}
    return {name: array for name, array in named.items() if array is not None}


def _as_numbers(value: Any) -> np.ndarray | None:
    """The array in native byte order; None if torch lacks its type."""
    if not isinstance(value, np.ndarray) or value.dtype == BFLOAT16:
        return value if isinstance(value, np.ndarray) else None
    if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
        return None
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def module_arrays(module: Record) -> dict[str, np.ndarray]:
    """Parameters and buffers of a pickled `nn.Module`, by dotted name."""
    arrays: dict[str, np.ndarray] = {}
    waiting: list[tuple[str, Any, int]] = [("", module, 0)]
    num_seen = 0
    while waiting:
        prefix, current, depth = waiting.pop()
        num_seen += 1
        if depth > MAX_MODULE_DEPTH or num_seen > MAX_TENSORS:
            raise ValueError("its modules are nested too deeply or endlessly")
        if not isinstance(current, Record):
            continue
        for table in ("_parameters", "_buffers"):
            for name, value in _dict(current.state.get(table)).items():
                if isinstance(value, np.ndarray):
                    arrays[f"{prefix}{name}"] = value
        for name, child in _dict(current.state.get("_modules")).items():
            waiting.append((f"{prefix}{name}.", child, depth + 1))
    return arrays


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def describe(content: Any) -> str:
    """Short description of a file's content, for messages."""
    tensors = named_arrays(content)
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
