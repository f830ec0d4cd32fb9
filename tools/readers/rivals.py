"""Other readers of the dataset of `bench/loader.py`, each used in its usual way.

Each function creates its files in a folder, once, and returns an endless iterator over batches that
yields their numbers of samples. Unless stated otherwise, images are packed rows and utterances the
bytes in the shards, neither decoded nor padded.
"""

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from im2sp.shards import DEFAULT_COLUMNS, Layout, ShardDataset, encode_batch, expand_members
from im2sp.tools.readers.data import make_samples, write_dataset

Batches = Generator[int, None, None]
BATCH_SIZE = 256


def arrow_table(dataset_dir: Path) -> pa.Table:
    """Images and utterances of all shards as a table of one chunk in memory."""
    files: list[Any] = [
        ipc.open_file(pa.memory_map(str(path))) for path in sorted(dataset_dir.glob("*.arrow"))
    ]
    tables = [file.read_all().select(["image_units", "speech_units"]) for file in files]
    return pa.concat_tables(tables).combine_chunks()


def arrow_take(table: pa.Table, pads: bool = False) -> Batches:
    """`Table.take`; batches are Arrow arrays, or, if `pads`, numpy arrays equivalent to ours."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(table))
        for start in range(0, len(table) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = table.take(order[start : start + BATCH_SIZE])
            yield _padded(batch) if pads else len(batch)


def _padded(batch: Any) -> int:
    """Copy the image rows and the utterances (8 bits per unit) into two arrays."""
    images, speech = (column.combine_chunks() for column in batch.columns)
    np.frombuffer(images.buffers()[1], np.uint8).reshape(-1, 1274)
    values = speech.flatten()
    first, num = values.offset, len(values) + 1
    offsets = np.frombuffer(values.buffers()[1], np.int32)[first : first + num]
    data = np.frombuffer(values.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    rows = np.full((lengths.size, int(lengths.max())), -1, np.int16)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = data
    return len(batch)


def numpy_views(dataset: ShardDataset, num_threads: int) -> Batches:
    """Slices of the mapped record batches, joined in Python; batches are equivalent to ours."""
    batches = [dataset.batch(number) for number in range(dataset.num_batches)]
    images_of = [batch.views["image_units"].data for batch in batches]
    speech_of = [batch.views["speech_units"] for batch in batches]
    first_rows = np.cumsum([0, *(batch.num_samples for batch in batches)])
    rng = np.random.default_rng(0)

    def read(samples: NDArray[np.int64]) -> int:
        numbers = np.searchsorted(first_rows, samples, "right") - 1
        rows = samples - first_rows[numbers]
        images = np.empty((samples.size, images_of[0].shape[1]), np.uint8)
        offsets, data, counts = [], [], []
        for k, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            images[k] = images_of[number][row]
            start, end = speech_of[number].offsets[row : row + 2].tolist()
            values = speech_of[number].values
            bounds = values.offsets[start : end + 1]
            data.append(values.data[bounds[0] : bounds[-1]])
            offsets.append(np.diff(bounds))
            counts.append(end - start)
        lengths = np.concatenate(offsets)
        padded = np.full((lengths.size, int(lengths.max())), -1, np.int16)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(data)
        np.repeat(np.arange(samples.size, dtype=np.int32), counts)
        return len(images)

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        while True:
            order = rng.permutation(len(dataset))
            whole = order[: order.size // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
            if not num_threads:
                yield from map(read, whole)
            for start in range(0, len(whole) if num_threads else 0, 8 * num_threads):
                yield from pool.map(read, whole[start : start + 8 * num_threads])


def hf_datasets(table: pa.Table, pads: bool = False) -> Batches:
    """`datasets.Dataset` in Arrow format, indexed by lists; the same batches."""
    from datasets import Dataset

    dataset = Dataset(table).with_format("arrow")
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(dataset))
        for start in range(0, len(dataset) - BATCH_SIZE + 1, BATCH_SIZE):
            batch: Any = dataset[order[start : start + BATCH_SIZE].tolist()]
            yield _padded(batch) if pads else len(batch)


def _webdataset(dir_path: Path, num_samples: int, samples_per_member: int) -> Batches:
    webdataset: Any = import_module("webdataset")
    layout = Layout(kind="webdataset", samples_per_member=samples_per_member)
    write_dataset(dir_path, num_samples, DEFAULT_COLUMNS, layout)
    urls = [str(path) for path in sorted(dir_path.glob("*.tar"))]
    while True:
        stream = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        samples = iter(stream.compose(expand_members).shuffle(2000))
        while batch := list(islice(samples, BATCH_SIZE)):
            np.stack([sample["image_units"] for sample in batch])
            yield len(batch)


def webdataset_packed(dir_path: Path, num_samples: int) -> Batches:
    """256 samples per member, `expand_members`, window of 2,000; images and speech are decoded."""
    return _webdataset(dir_path / "webdataset-256", num_samples, 256)


def webdataset_plain(dir_path: Path, num_samples: int) -> Batches:
    """One sample per member, otherwise the same."""
    return _webdataset(dir_path / "webdataset-1", num_samples, 1)


def mosaicml_streaming(dir_path: Path, num_samples: int) -> Batches:
    """MDS shards, shuffled by blocks; images are stacked."""
    streaming: Any = import_module("streaming")
    path = dir_path / "mds"
    if not (path / "index.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        columns = {"image": "bytes", "speech": "bytes"}
        with streaming.MDSWriter(columns=columns, out=str(path)) as writer:
            for sample in _coded(num_samples):
                writer.write(sample)
    dataset = streaming.StreamingDataset(
        local=str(path), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1
    )
    return _stacked(lambda: iter(dataset))


def litdata_streaming(dir_path: Path, num_samples: int) -> Batches:
    """Chunks of litdata, 64 MB each, shuffled inside chunks; images are stacked."""
    litdata: Any = import_module("litdata")
    path = dir_path / "litdata"
    if not (path / "index.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        cache = import_module("litdata.streaming.cache").Cache(str(path), chunk_bytes=1 << 26)
        for i, sample in enumerate(_coded(num_samples)):
            cache[i] = sample
        cache.done()
        cache.merge()
    dataset = litdata.StreamingDataset(str(path), shuffle=True)
    return _stacked(lambda: iter(dataset))


def _coded(num_samples: int) -> Iterator[dict[str, bytes]]:
    for samples in make_samples(num_samples):
        for row in encode_batch(samples).to_pylist():
            yield {"image": row["image_units"] or b"", "speech": b"".join(row["speech_units"])}


def _stacked(make: Callable[[], Iterable[dict[str, bytes]]]) -> Batches:
    while True:
        samples = iter(make())
        while batch := list(islice(samples, BATCH_SIZE)):
            np.frombuffer(b"".join([sample["image"] for sample in batch]), np.uint8)
            yield len(batch)
