"""Measure bytes and samples per second of other tokenizers' units, in im2sp and other formats.

    python tools/bench/units.py --dir build/bench-units

Generates 20,000 samples of uniform random units of each kind, once: grids of 28x28 units of 13 bits
(ViT-VQGAN), 16x16 of 14 bits (LlamaGen), 16x16 of 18 bits (Open-MAGVIT2), and 8 codebooks of 11
bits with 50 to 149 frames (Mimi). Every reader delivers the units of 256 shuffled samples as one
array of integers, padded with -1, in one process. A tar of `.npy` files and the formats of
mosaicml-streaming and litdata shuffle inside a window or chunk, as these libraries do; ours and
datasets shuffle all samples. Readers take turns, each in a new process, since some leave threads
behind; figures are medians. Libraries that cannot be imported are skipped.
"""

import io
import json
import shutil
import statistics
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from im2sp.shards import DatasetWriter, ShardLoader, UnitColumn
from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_dir
from im2sp.tools.bench.loader import rate
from im2sp.tools.bench.timing import machine, table
from im2sp.tools.readers.rivals import BATCH_SIZE, Batches

KINDS = {
    "28x28, 13 bits": UnitColumn((28, 28), 8192),
    "16x16, 14 bits": UnitColumn((16, 16), 16384),
    "16x16, 18 bits": UnitColumn((16, 16), 1 << 18),
    "8xT, 11 bits": UnitColumn((8, None), 2048),
}
_CHUNK_BYTES = 1 << 26

Units = NDArray[np.uint16 | np.uint32]


def samples(column: UnitColumn, num_samples: int) -> Iterator[Units]:
    """Uniform random units; an axis that varies has 50 to 149."""
    rng = np.random.default_rng(0)
    for _ in range(num_samples):
        shape = [rng.integers(50, 150) if size is None else size for size in column.shape]
        yield rng.integers(0, column.num_codes, shape).astype(column.dtype)


def padded(arrays: list[NDArray[Any]]) -> NDArray[np.int64]:
    """One array (samples, ..) of the arrays, padded with -1 at the end of the last axis."""
    width = max(array.shape[-1] for array in arrays)
    batch = np.full((len(arrays), *arrays[0].shape[:-1], width), -1, np.int64)
    for row, array in zip(batch, arrays, strict=True):
        row[..., : array.shape[-1]] = array
    return batch


def _batches(make: Callable[[], Iterable[NDArray[Any]]]) -> Batches:
    while True:
        arrays = iter(make())
        while found := list(islice(arrays, BATCH_SIZE)):
            yield len(padded(found))


class Ours:
    """im2sp, Arrow layout."""

    @staticmethod
    def write(folder: Path, column: UnitColumn, arrays: Iterable[Units]) -> None:
        """Write the dataset."""
        with DatasetWriter(folder, columns={_name(column): column}) as writer:
            for i, array in enumerate(arrays):
                row: dict[str, Any] = {"key": f"{i:06d}", _name(column): array}
                writer.write(**row)

    @staticmethod
    def read(folder: Path, column: UnitColumn) -> Batches:
        """Read batches without end."""
        is_image = not column.num_variable
        target = "images" if is_image else _name(column)
        loader = ShardLoader(
            folder, batch_size=BATCH_SIZE, epochs=None, target=target, needs_image=is_image
        )
        for batch in loader:
            yield len(batch.image_units) if is_image else len(batch.ids)


class NpyTar:
    """Tars of `.npy` files, read by webdataset."""

    @staticmethod
    def write(folder: Path, column: UnitColumn, arrays: Iterable[Units]) -> None:
        """Write one tar of one file per sample."""
        with tarfile.open(folder / "0.tar", "w") as archive:
            for i, array in enumerate(arrays):
                file = io.BytesIO()
                np.save(file, array)
                member = tarfile.TarInfo(f"{i:06d}.npy")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)

    @staticmethod
    def read(folder: Path, column: UnitColumn) -> Batches:
        """Read batches without end, shuffled in a window of 2,000."""
        webdataset: Any = import_module("webdataset")

        def arrays() -> Iterator[NDArray[Any]]:
            stream = webdataset.WebDataset(str(folder / "0.tar"), shardshuffle=False)
            for sample in stream.shuffle(2000).decode():
                yield sample["npy"]

        return _batches(arrays)


class Mds:
    """MDS shards of mosaicml-streaming."""

    @staticmethod
    def write(folder: Path, column: UnitColumn, arrays: Iterable[Units]) -> None:
        """Write the shards."""
        streaming: Any = import_module("streaming")
        columns = {"units": f"ndarray:{np.dtype(column.dtype)}"}
        with streaming.MDSWriter(columns=columns, out=str(folder)) as writer:
            for array in arrays:
                writer.write({"units": array})

    @staticmethod
    def read(folder: Path, column: UnitColumn) -> Batches:
        """Read batches without end."""
        streaming: Any = import_module("streaming")
        dataset = streaming.StreamingDataset(
            local=str(folder), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1
        )
        return _batches(lambda: (sample["units"] for sample in dataset))


class Litdata:
    """Chunks of litdata."""

    @staticmethod
    def write(folder: Path, column: UnitColumn, arrays: Iterable[Units]) -> None:
        """Write the chunks."""
        cache: Any = import_module("litdata.streaming.cache")
        written = cache.Cache(str(folder), chunk_bytes=_CHUNK_BYTES)
        for i, array in enumerate(arrays):
            written[i] = {"units": array}
        written.done()
        written.merge()

    @staticmethod
    def read(folder: Path, column: UnitColumn) -> Batches:
        """Read batches without end."""
        litdata: Any = import_module("litdata")
        dataset = litdata.StreamingDataset(str(folder), shuffle=True)
        return _batches(lambda: (sample["units"] for sample in dataset))


class Datasets:
    """The datasets library: flat lists of integers in Arrow files."""

    @staticmethod
    def write(folder: Path, column: UnitColumn, arrays: Iterable[Units]) -> None:
        """Write the dataset with `save_to_disk`."""
        datasets: Any = import_module("datasets")
        datasets.disable_progress_bars()
        units = datasets.Sequence(datasets.Value(str(np.dtype(column.dtype))))
        rows = [{"units": array.ravel().tolist()} for array in arrays]
        found = datasets.Dataset.from_list(rows, datasets.Features({"units": units}))
        found.save_to_disk(str(folder))

    @staticmethod
    def read(folder: Path, column: UnitColumn) -> Batches:
        """Read batches without end, by lists of row numbers."""
        datasets: Any = import_module("datasets")
        dataset = datasets.load_from_disk(str(folder)).with_format("numpy")
        shape = [-1 if size is None else size for size in column.shape]
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(len(dataset))
            for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
                found = dataset[order[start : start + BATCH_SIZE].tolist()]["units"]
                yield len(padded([array.reshape(shape) for array in found]))


FORMATS: dict[str, Any] = {
    "im2sp": Ours,
    ".npy in tars": NpyTar,
    "MDS": Mds,
    "litdata": Litdata,
    "datasets": Datasets,
}


def _name(column: UnitColumn) -> str:
    return "audio_units" if column.num_variable else "image_units"


def size_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured(name: str, folder: Path, column: UnitColumn, seconds: float) -> float:
    """Samples per second of a reader after its first 40 batches; run in a new process."""
    torch.set_num_threads(1)
    batches: Batches = FORMATS[name].read(folder, column)
    for _ in range(40):
        next(batches)
    found = rate(batches, seconds)
    batches.close()
    return found


@dataclass(frozen=True, kw_only=True)
class BenchUnitsConfig:
    """Measure bytes and samples per second of other tokenizers' units in several formats."""

    dir: Path
    """Folder for the generated data."""
    num_samples: int = 20_000
    """Samples to generate of each kind."""
    num_rounds: int = 5
    """Rounds per case."""
    seconds: float = 0.5
    """Duration of a round."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_units", BenchUnitsConfig, _run, args)


def _run(config: BenchUnitsConfig) -> None:
    rows: list[dict[str, object]] = []
    for kind, column in KINDS.items():
        place = config.dir / kind.replace(", ", "-").replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        sizes: dict[str, float] = {}
        for name, form in FORMATS.items():
            folder = place / name.strip(".").replace(" ", "-")
            try:
                with atomic_dir(folder) as new:
                    form.write(new, column, samples(column, config.num_samples))
            except ImportError as error:
                print(json.dumps({"kind": kind, "format": name, "left_out": str(error)}))
                continue
            sizes[name] = size_bytes(folder) / config.num_samples
        rates: dict[str, list[float]] = {name: [] for name in sizes}
        for _ in range(config.num_rounds):
            for name in rates:
                folder = place / name.strip(".").replace(" ", "-")
                with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                    found = alone.submit(measured, name, folder, column, config.seconds)
                    rates[name].append(found.result())
        shutil.rmtree(place)
        for name, found in rates.items():
            picks = {"bytes_a_sample": sizes[name], "samples_a_s": statistics.median(found)}
            picks |= {"slowest": min(found), "fastest": max(found)}
            rounded = {key: round(value) for key, value in picks.items()}
            rows.append({"kind": kind, "format": name, **rounded})
            print(json.dumps(rows[-1]), flush=True)
    print(f"\n{config.num_samples} samples of each kind; {machine('numpy', 'pyarrow', 'torch')}\n")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
