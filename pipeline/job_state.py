"""What a tokenize job keeps on disk while it runs, so that it can be killed at any moment.

All of it lies in `OUT/.im2sp-job/` and is gone when the dataset is complete:

    lock               held while a job runs; two jobs never write one dataset
    job.json           settings and source, to compare with those of the run that goes on
    chunk-000012.json  rejects and counts of inputs 12 x 256 and up
    chunk-000012.arrow their samples; written after the .json, so it alone marks the chunk done
    shard-00000.json   a finished shard: its `ShardInfo`, rejects and counts; its chunks are gone

Every file is written whole or not at all, and each is a function of the source and the settings
alone, so a dataset ends with the same bytes however often its job was interrupted.
"""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from im2sp.shards import BatchInfo, Layout, ShardInfo, write_shard
from im2sp.shards.files import TMP_SUFFIX, atomic_file

JOB_DIR_NAME = ".im2sp-job"
_SHARD_FILE = re.compile(r"\d{5,}\.(arrow|tar)(\.tmp)?")


class JobError(ValueError):
    """The job cannot start or go on; the message says what to do."""


@dataclass(kw_only=True)
class Tally:
    """Counts over some inputs."""

    rejects: list[dict[str, str]] = field(default_factory=list)
    """One `{"file", "reason"}` for each refused input, in the order of the source."""
    num_images: int = 0
    """Inputs that became samples."""
    image_file_bytes: int = 0
    """Size of their original files together."""

    def add(self, other: "Tally") -> None:
        """Append the counts of later inputs."""
        self.rejects += other.rejects
        self.num_images += other.num_images
        self.image_file_bytes += other.image_file_bytes


class JobState:
    """The job folder of one dataset."""

    def __init__(self, dataset_dir: Path) -> None:
        self.dataset_dir = dataset_dir
        self.dir = dataset_dir / JOB_DIR_NAME

    @property
    def exists(self) -> bool:
        """Whether an unfinished job lies here."""
        return (self.dir / "job.json").exists()

    def read_job(self) -> dict[str, Any]:
        """The description that the unfinished job was begun with."""
        return _read_json(self.dir / "job.json")

    def begin(self, job: dict[str, Any]) -> None:
        """Record what the job is."""
        _write_json(self.dir / "job.json", job)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; it is created if need be.

        Raises:
            JobError: Another process holds it.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        with open(self.dir / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JobError(
                    f"{self.dataset_dir}: another im2sp-tokenize is writing here; wait for it or "
                    "choose another --out"
                ) from None
            yield

    def has_chunk(self, index: int) -> bool:
        """Whether all inputs of a chunk are done."""
        return self._chunk(index, "arrow").exists()

    def write_chunk(self, index: int, batch: pa.RecordBatch, tally: Tally) -> None:
        """Keep a chunk's samples and counts."""
        _write_json(self._chunk(index, "json"), asdict(tally))
        with (
            atomic_file(self._chunk(index, "arrow")) as file,
            pa.ipc.new_stream(file, batch.schema) as writer,
        ):
            writer.write_batch(batch)

    def read_chunk_tally(self, index: int) -> Tally:
        """Counts of a finished chunk."""
        return Tally(**_read_json(self._chunk(index, "json")))

    def finish_shard(self, index: int, chunks: range, layout: Layout) -> None:
        """Write a shard from its chunks, then drop them."""
        tally = Tally()
        for chunk in chunks:
            tally.add(self.read_chunk_tally(chunk))
        info = None
        if tally.num_images:
            path = self.dataset_dir / f"{index:05d}{layout.suffix}"
            info = write_shard(path, (self._read_batch(chunk) for chunk in chunks), layout)
        record = {"shard": None if info is None else asdict(info), "tally": asdict(tally)}
        _write_json(self._shard(index), record)
        self.drop_chunks(chunks)

    def drop_chunks(self, chunks: range) -> None:
        """Remove the chunks of a finished shard, as far as they are there."""
        for chunk in chunks:
            for suffix in ("arrow", "json"):
                self._chunk(chunk, suffix).unlink(missing_ok=True)

    def has_shard(self, index: int) -> bool:
        """Whether a shard is finished."""
        return self._shard(index).exists()

    def read_shard(self, index: int) -> tuple[ShardInfo | None, Tally]:
        """A finished shard; None for its info where every input of it was refused."""
        record = _read_json(self._shard(index))
        shard = record["shard"]
        if shard is not None:
            shard["batches"] = tuple(BatchInfo(**batch) for batch in shard["batches"])
            shard = ShardInfo(**shard)
        return shard, Tally(**record["tally"])

    def clear(self) -> None:
        """Empty the job folder but for the lock; `job.json` goes first: half a folder is no job."""
        (self.dir / "job.json").unlink(missing_ok=True)
        for path in self.dir.iterdir():
            if path.name != "lock":
                path.unlink()

    def remove(self) -> None:
        """Drop the job folder of a finished dataset."""
        self.clear()
        shutil.rmtree(self.dir)

    def _read_batch(self, index: int) -> pa.RecordBatch:
        with pa.ipc.open_stream(self._chunk(index, "arrow").read_bytes()) as reader:
            return reader.read_next_batch()

    def _chunk(self, index: int, suffix: str) -> Path:
        return self.dir / f"chunk-{index:06d}.{suffix}"

    def _shard(self, index: int) -> Path:
        return self.dir / f"shard-{index:05d}.json"


def shard_files(dataset_dir: Path) -> list[Path]:
    """Files in a folder that bear the name of a shard, listed in a manifest or not."""
    if not dataset_dir.is_dir():
        return []
    return sorted(path for path in dataset_dir.iterdir() if _SHARD_FILE.fullmatch(path.name))


def remove_stale_files(dataset_dir: Path, names: list[str]) -> None:
    """Remove a former dataset: the given files first, then everything named like a shard."""
    for name in names:
        (dataset_dir / name).unlink(missing_ok=True)
        (dataset_dir / (name + TMP_SUFFIX)).unlink(missing_ok=True)
    for path in shard_files(dataset_dir):
        path.unlink()


def _write_json(path: Path, content: object) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode() + b"\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise JobError(
            f"{path}: the record of the unfinished job is damaged ({error}); start anew with "
            "--overwrite"
        ) from None


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two descriptions differ: `view: squash-224 there, center-224 now`."""
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old} there, {new} now")
    return found
