"""State that a running tokenize job keeps on disk, so that it can be killed at any moment.

All of it is stored in `OUT/.im2sp-job/`, which is removed when the dataset is complete:

    lock               held while a job runs; two jobs never write one dataset
    job.json           settings and source, to compare with those of the run that resumes
    stale.json         files of a former dataset, while --overwrite removes them
    chunk-000012.arrow samples of inputs 12 x 256 and up
    chunk-000012.json  their rejects and counts, and the checksum of the samples; written last
    codecs.json        codecs of the shards, once they are fitted to speech
    shard-00000.json   a finished shard: its `ShardInfo`, rejects and counts; its chunks are removed

Every file is written whole or not at all and depends only on the source and the settings, so a
dataset has the same bytes however often its job was interrupted.
"""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from im2sp.pipeline.job.config import JobError
from im2sp.shards import BatchInfo, Layout, ShardError, ShardInfo, write_shard
from im2sp.shards.coding import make_codecs
from im2sp.shards.files import (
    TMP_SUFFIX,
    atomic_file,
    file_lock,
    is_plain_name,
    read_json,
    read_regular,
)

JOB_DIR_NAME = ".im2sp-job"


@dataclass(kw_only=True)
class Tally:
    """Counts over some inputs."""

    rejects: list[dict[str, str]] = field(default_factory=list)
    """One `{"file", "reason"}` for each refused input, in the order of the source."""
    num_images: int = 0
    """Images of the inputs that became samples."""
    image_file_bytes: int = 0
    """Total size of their original files."""
    num_utterances: int = 0
    """Clips that were accepted."""
    audio_samples: int = 0
    """Total samples of these clips at 16 kHz."""
    audio_file_bytes: int = 0
    """Total size of their original files."""

    def add(self, other: "Tally") -> None:
        """Add the counts of later inputs."""
        self.rejects += other.rejects
        self.num_images += other.num_images
        self.image_file_bytes += other.image_file_bytes
        self.num_utterances += other.num_utterances
        self.audio_samples += other.audio_samples
        self.audio_file_bytes += other.audio_file_bytes

    def raw(self, *, has_speech: bool) -> dict[str, int]:
        """Return the manifest's `raw`; without audio counts for a dataset of images alone."""
        images = {"num_images": self.num_images, "image_file_bytes": self.image_file_bytes}
        if not has_speech:
            return images
        return images | {
            "num_utterances": self.num_utterances,
            "audio_samples": self.audio_samples,
            "audio_file_bytes": self.audio_file_bytes,
        }


class JobState:
    """Job folder of one dataset."""

    def __init__(self, dataset_dir: Path) -> None:
        self.dataset_dir = dataset_dir
        self.dir = dataset_dir / JOB_DIR_NAME

    @property
    def exists(self) -> bool:
        """True if the folder holds an unfinished job."""
        return (self.dir / "job.json").exists()

    def read_job(self) -> dict[str, Any]:
        """Return the description of the unfinished job."""
        job = self._read("job.json")
        if not isinstance(job, dict):
            raise self._damage("job.json", "not an object")
        return job

    def layout_suffix(self) -> str | None:
        """File suffix of the unfinished job's shards; None if there is no job or it is damaged."""
        with suppress(JobError, KeyError, TypeError):
            return Layout(kind=self.read_job()["layout"]["kind"]).suffix if self.exists else None
        return None

    def read_stale(self) -> list[str]:
        """Return the files whose removal was started."""
        if not (self.dir / "stale.json").exists():
            return []
        return [name for name in self._read("stale.json") if is_plain_name(name)]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold an exclusive lock on the folder; removes the folder if no job was started in it.

        Raises:
            JobError: Another process holds the lock.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        with file_lock(self.dir / "lock") as is_ours:
            if not is_ours:
                raise JobError(
                    f"{self.dataset_dir}: another im2sp-tokenize is writing here; wait for it or "
                    "choose another --out"
                )
            try:
                yield
            finally:
                if self.dir.is_dir() and set(os.listdir(self.dir)) <= {"lock", "lock.held"}:
                    shutil.rmtree(self.dir, ignore_errors=True)

    def begin(self, job: dict[str, Any], stale: list[str]) -> None:
        """Remove a former job and the files named in `stale`, then record the new job.

        If it is killed, the former dataset or job is still there, or the list of files to remove.
        """
        if stale:
            self._write("stale.json", stale)
        (self.dir / "job.json").unlink(missing_ok=True)
        for path in self.dir.iterdir():
            if path.name not in ("lock", "lock.held", "stale.json"):
                path.unlink()
        for name in stale:
            (self.dataset_dir / name).unlink(missing_ok=True)
        (self.dir / "stale.json").unlink(missing_ok=True)
        self._write("job.json", job)

    def remove(self) -> None:
        """Remove the job folder of a finished dataset."""
        shutil.rmtree(self.dir)

    def forget(self, chunks: Sequence[int] | None, chunks_per_shard: int = 1) -> None:
        """Drop what was made of some chunks, their shards included, or of all for None."""
        for path in self.dir.iterdir():
            kind, _, number = path.stem.partition("-")
            if path.suffix == TMP_SUFFIX:
                path.unlink()
            elif kind == "shard":
                index = int(number)
                held = range(index * chunks_per_shard, (index + 1) * chunks_per_shard)
                if chunks is not None and not any(chunk in held for chunk in chunks):
                    continue
                shard, _ = self.read_shard(index)
                path.unlink()
                if shard is not None:
                    (self.dataset_dir / shard.file).unlink(missing_ok=True)
            elif chunks is None:
                if kind == "chunk" or path.name == "codecs.json":
                    path.unlink()
            elif kind == "chunk" and int(number) in chunks:
                path.unlink()

    def has_chunk(self, index: int) -> bool:
        """True if all inputs of a chunk are done."""
        return self._chunk(index, ".json").exists()

    def write_chunk(self, index: int, batch: pa.RecordBatch, tally: Tally) -> None:
        """Store the samples and counts of a chunk."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        data = sink.getvalue()
        with atomic_file(self._chunk(index, ".arrow")) as file:
            file.write(data)
        record = {
            "num_samples": batch.num_rows,
            "crc32": zlib.crc32(data),
            "tally": asdict(tally),
        }
        self._write(self._chunk(index, ".json").name, record)

    def count(self, chunks: range) -> Tally:
        """Return the total counts of finished chunks."""
        tally = Tally()
        for chunk in chunks:
            tally.add(self._read_record(chunk)[2])
        return tally

    def read_batches(self, chunks: range) -> Iterator[pa.RecordBatch]:
        """Iterate over the samples of finished chunks, one chunk at a time."""
        for chunk in chunks:
            yield self._read_chunk(chunk)

    def finish_shard(
        self,
        index: int,
        chunks: range,
        layout: Layout,
        recode: Callable[[pa.RecordBatch], pa.RecordBatch] = lambda batch: batch,
    ) -> None:
        """Write a shard from its chunks, then remove them.

        Args:
            index: Number of the shard.
            chunks: Numbers of its chunks.
            layout: Layout of the shard.
            recode: Function applied to each chunk's samples before they are written.
        """
        info = None
        if any(self._read_record(chunk)[0] for chunk in chunks):
            path = self.dataset_dir / f"{index:05d}{layout.suffix}"
            info = write_shard(path, map(recode, self.read_batches(chunks)), layout)
        record = {
            "shard": None if info is None else asdict(info),
            "tally": asdict(self.count(chunks)),
        }
        self._write(f"shard-{index:05d}.json", record)
        self.drop_chunks(chunks)

    def write_columns(self, columns: dict[str, dict[str, Any]]) -> None:
        """Store the codecs of the shards."""
        self._write("codecs.json", columns)

    def read_columns(self) -> dict[str, dict[str, Any]] | None:
        """Return the codecs of the shards; None if they are not fitted yet."""
        if not (self.dir / "codecs.json").exists():
            return None
        columns = self._read("codecs.json")
        try:
            make_codecs(columns)
        except (ShardError, TypeError) as error:
            raise self._damage("codecs.json", error) from None
        return columns

    def drop_chunks(self, chunks: range) -> None:
        """Remove the chunks of a finished shard that still exist."""
        for chunk in chunks:
            for suffix in (".json", ".arrow"):
                self._chunk(chunk, suffix).unlink(missing_ok=True)

    def has_shard(self, index: int) -> bool:
        """True if a shard is finished."""
        return (self.dir / f"shard-{index:05d}.json").exists()

    def read_shard(self, index: int) -> tuple[ShardInfo | None, Tally]:
        """Return a finished shard; its info is None if all of its inputs were refused."""
        record = self._read(f"shard-{index:05d}.json")
        shard = record["shard"]
        if shard is not None:
            shard["batches"] = tuple(BatchInfo(**batch) for batch in shard["batches"])
            shard = ShardInfo(**shard)
        return shard, Tally(**record["tally"])

    def _read_chunk(self, index: int) -> pa.RecordBatch:
        """Return the samples of a chunk; reads its file once."""
        num_samples, crc32, _ = self._read_record(index)
        path = self._chunk(index, ".arrow")
        try:
            data = read_regular(path)
            if zlib.crc32(data) != crc32:
                raise ValueError("its checksum differs from that in its .json")
            with pa.ipc.open_stream(data) as reader:
                batch = reader.read_next_batch()
            if batch.num_rows != num_samples:
                raise ValueError(f"{batch.num_rows} samples; its .json lists {num_samples}")
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            raise self._damage(path.name, error) from None
        return batch

    def _read_record(self, index: int) -> tuple[int, int, Tally]:
        """Number of samples, checksum and counts of a chunk."""
        name = self._chunk(index, ".json").name
        record = self._read(name)
        try:
            return record["num_samples"], record["crc32"], Tally(**record["tally"])
        except (KeyError, TypeError) as error:
            raise self._damage(name, error) from None

    def _chunk(self, index: int, suffix: str) -> Path:
        return self.dir / f"chunk-{index:06d}{suffix}"

    def _write(self, name: str, content: object) -> None:
        with atomic_file(self.dir / name) as file:
            file.write(json.dumps(content).encode() + b"\n")

    def _read(self, name: str) -> Any:
        try:
            return read_json(self.dir / name)
        except (OSError, ValueError) as error:
            raise self._damage(name, error) from None

    def _damage(self, name: str, error: object) -> JobError:
        """The error to raise; an error of the system, not of the file, is raised as it is."""
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EINVAL):
            raise error
        return JobError(
            f"{self.dir / name}: the record of the unfinished job is damaged ({error}); start over "
            "with --overwrite"
        )
