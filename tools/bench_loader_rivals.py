"""Other ways to read the dataset of `bench_loader.py`, each as its own users would do it.

Each function makes what it needs below a folder, once, and returns an endless iterator over batches
that yields the number of samples of each. None of them pads, and none decodes speech unless it says
so: images come as (256, 1274) packed rows, utterances as the bytes that the shards hold.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from im2sp.shards import DEFAULT_COLUMNS, Layout, expand_members
from im2sp.tools.bench_loader_data import make_samples, write_dataset

Batches = Iterator[int]
BATCH_SIZE = 256


def arrow_table(dataset_dir: Path) -> pa.Table:
    """Images and utterances of all shards as a table of one chunk in memory."""
    tables = [
        ipc.open_file(pa.memory_map(str(path))).read_all().select(["image_units", "speech_units"])
        for path in sorted(dataset_dir.glob("*.arrow"))
    ]
    return pa.concat_tables(tables).combine_chunks()


def arrow_take(table: pa.Table) -> Batches:
    """`Table.take`; a batch is Arrow arrays."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(table))
        for start in range(0, len(table) - BATCH_SIZE + 1, BATCH_SIZE):
            yield len(table.take(pa.array(order[start : start + BATCH_SIZE])))


def hf_datasets(table: pa.Table) -> Batches:
    """`datasets.Dataset` in Arrow format, indexed by lists; a batch is Arrow arrays."""
    from datasets import Dataset

    dataset = Dataset(table).with_format("arrow")
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(dataset))
        for start in range(0, len(dataset) - BATCH_SIZE + 1, BATCH_SIZE):
            batch: Any = dataset[order[start : start + BATCH_SIZE].tolist()]
            yield len(batch)


def _webdataset(dir_path: Path, num_samples: int, samples_per_member: int) -> Batches:
    import webdataset

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
    """256 samples a member, `expand_members`, window of 2,000; images and speech are decoded."""
    return _webdataset(dir_path / "webdataset-256", num_samples, 256)


def webdataset_plain(dir_path: Path, num_samples: int) -> Batches:
    """Members for each sample, otherwise the same."""
    return _webdataset(dir_path / "webdataset-1", num_samples, 1)


def mosaicml_streaming(dir_path: Path, num_samples: int) -> Batches:
    """MDS shards, shuffled by blocks; images are stacked."""
    from streaming import MDSWriter, StreamingDataset

    path = dir_path / "mds"
    if not (path / "index.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        with MDSWriter(columns={"image": "bytes", "speech": "bytes"}, out=str(path)) as writer:
            for sample in _coded(num_samples):
                writer.write(sample)
    dataset = StreamingDataset(
        local=str(path), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1
    )
    return _stacked(lambda: iter(dataset))


def litdata_streaming(dir_path: Path, num_samples: int) -> Batches:
    """Litdata chunks of 64 MB, shuffled inside chunks; images are stacked."""
    import litdata
    from litdata.streaming.cache import Cache

    path = dir_path / "litdata"
    if not (path / "index.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        cache = Cache(str(path), chunk_bytes=1 << 26)
        for i, sample in enumerate(_coded(num_samples)):
            cache[i] = sample
        cache.done()
        cache.merge()
    dataset = litdata.StreamingDataset(str(path), shuffle=True)
    return _stacked(lambda: iter(dataset))


def _coded(num_samples: int) -> Iterator[dict[str, bytes]]:
    from im2sp.shards import encode_batch

    for samples in make_samples(num_samples):
        batch = encode_batch(samples)
        images, speech = batch.column("image_units"), batch.column("speech_units")
        for row in range(batch.num_rows):
            yield {"image": images[row].as_py(), "speech": b"".join(speech[row].as_py())}


def _stacked(make: Callable[[], Iterable[dict[str, bytes]]]) -> Batches:
    while True:
        samples = iter(make())
        while batch := list(islice(samples, BATCH_SIZE)):
            np.frombuffer(b"".join([sample["image"] for sample in batch]), np.uint8)
            yield len(batch)
