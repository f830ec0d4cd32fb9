"""State that a running tokenize job keeps on disk, so that it can be killed at any moment.

All of it is stored in `OUT/.im2sp-job/`, which is removed when the dataset is complete:

    lock               held while a job runs; two jobs never write one dataset. Parts share it
    part-0-of-4.lock   held while a part runs
    job.json           settings and source, to compare with those of the run that resumes
    stale.json         files of a former dataset, while --overwrite removes them
    chunk-000012-1f0c9a7e.arrow samples of inputs 12 x 256 and up; the second number is the job's
    chunk-000012-1f0c9a7e.json  their rejects and counts, and the checksum of the samples; last
    tables.safetensors coding tables of the shards, once they are fitted to speech
    environments.json  chunks of finished shards that another environment than the job's has encoded
    inputs.u64         a digest of each input (`identity`)

A finished shard is a part of the dataset (`im2sp.shards.writing.parts`); its chunks are removed.
Every file is written whole or not at all and depends only on the source and the settings, so a
dataset has the same bytes however often its job was interrupted.
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from im2sp.pipeline.job.config import JobError
from im2sp.pipeline.job.identity import IDENTITIES_NAME
from im2sp.shards import DatasetWriter, Layout, ShardError
from im2sp.shards.codebook import parse_tensors, tensors_to_bytes
from im2sp.shards.files import (
    HELD_SUFFIX,
    TMP_SUFFIX,
    atomic_file,
    create_file,
    file_lock,
    is_plain_name,
    read_json,
    read_regular,
)
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.schema import Schema
from im2sp.shards.writing.parts import PARTS_DIR, drop_part, part_path

JOB_DIR_NAME = ".im2sp-job"
TABLES_NAME = "tables.safetensors"
_ENVIRONMENTS_NAME = "environments.json"


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
    num_inputs: int = 0
    """Inputs, where containers are listed one by one; else 0."""
    num_ignored: int = 0
    """Files in these containers that are not candidates."""

    def add(self, other: "Tally") -> None:
        """Add the counts of later inputs."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def raw(self, *, has_speech: bool) -> dict[str, int]:
        """Return the manifest's `raw`; without audio counts for a dataset of images alone."""
        left_out = {"rejects"}
        if not has_speech:
            left_out |= {"num_utterances", "audio_samples", "audio_file_bytes"}
        if not self.num_inputs:
            left_out |= {"num_inputs", "num_ignored"}
        return {name: count for name, count in vars(self).items() if name not in left_out}


class JobState:
    """Job folder of one dataset; chunks of a job with another `Plan.job_id` are not seen."""

    def __init__(self, dataset_dir: Path, job_id: str = "") -> None:
        self.dataset_dir = dataset_dir
        self.dir = dataset_dir / JOB_DIR_NAME
        self.job_id = job_id
        self._suffix = f"-{job_id}" if job_id else ""

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
        is_new = not self.dataset_dir.exists()
        self.dir.mkdir(parents=True, exist_ok=True)
        with file_lock(self.dir / "lock") as is_ours:
            if not is_ours:
                raise self._is_held()
            for path in self.dir.glob(f"part-*{HELD_SUFFIX}"):  # without flock
                raise JobError(
                    f"{path}: a part of the job is at work on {path.read_text()}; wait for it, or "
                    "remove this file if it was killed"
                )
            try:
                yield
            finally:
                if self.dir.is_dir() and set(os.listdir(self.dir)) <= {"lock", "lock.held"}:
                    shutil.rmtree(self.dir, ignore_errors=True)
                    with suppress(OSError):  # it holds other files
                        if is_new:
                            self.dataset_dir.rmdir()

    @contextmanager
    def lock_part(self, index: int, num_parts: int) -> Iterator[None]:
        """Hold one part of the job, beside other parts.

        Raises:
            JobError: Another process holds this part, or the whole job.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        path = self.dir / f"part-{index}-of-{num_parts}.lock"
        with file_lock(path) as is_ours:
            if not is_ours:
                raise JobError(
                    f"{self.dataset_dir}: another im2sp-tokenize is at work on --part "
                    f"{index}/{num_parts}; wait for it, or, if it was killed, remove "
                    f"{path}{HELD_SUFFIX}"
                )
            with file_lock(self.dir / "lock", is_shared=True) as is_free:
                if not is_free:
                    raise self._is_held()
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)

    def _is_held(self) -> JobError:
        return JobError(
            f"{self.dataset_dir}: another im2sp-tokenize is writing here; wait for it or choose "
            "another --out"
        )

    def join(self, job: dict[str, Any], digests: bytes) -> None:
        """Record a job and its inputs, unless another part has recorded one."""
        create_file(self.dir / IDENTITIES_NAME, digests)
        create_file(self.dir / "job.json", json.dumps(job).encode() + b"\n")

    def begin(self, job: dict[str, Any], stale: list[str]) -> None:
        """Remove a former job and the files named in `stale`, then record the new job.

        If it is killed, the former dataset or job is still there, or the list of files to remove.
        """
        if stale:
            self._write("stale.json", stale)
        (self.dir / "job.json").unlink(missing_ok=True)
        shutil.rmtree(self.dataset_dir / PARTS_DIR, ignore_errors=True)
        for path in self.dir.iterdir():
            if path.name not in ("lock", "lock.held", "stale.json"):
                path.unlink()
        for name in stale:
            (self.dataset_dir / name).unlink(missing_ok=True)
        (self.dir / "stale.json").unlink(missing_ok=True)
        self._write("job.json", job)

    def remove(self) -> None:
        """Remove the job folder of a finished dataset."""
        shutil.rmtree(self.dataset_dir / PARTS_DIR, ignore_errors=True)
        shutil.rmtree(self.dir)

    def forget(self, chunks: Sequence[int] | None, shards: Sequence[range]) -> None:
        """Drop what was made of some chunks, their shards included, or of all for None.

        Args:
            chunks: Numbers of the chunks.
            shards: Chunks of each shard.
        """
        for index, held in enumerate(shards):
            if chunks is None or any(chunk in held for chunk in chunks):
                drop_part(self.dataset_dir, index, len(shards))
        for path in self.dir.iterdir():
            found = re.match(r"chunk-(\d+)", path.name)
            is_of_chunk = found is not None and (chunks is None or int(found[1]) in chunks)
            is_of_all = chunks is None and path.name in (TABLES_NAME, _ENVIRONMENTS_NAME)
            if is_of_chunk or is_of_all or path.suffix == TMP_SUFFIX:
                path.unlink()

    def finished_chunks(self) -> set[int]:
        """Return the chunks whose inputs are all done."""
        pattern = re.compile(rf"chunk-(\d+){self._suffix}\.json")
        found = map(pattern.fullmatch, os.listdir(self.dir))
        return {int(chunk[1]) for chunk in found if chunk}

    def write_chunk(
        self, index: int, batch: pa.RecordBatch, tally: Tally, environment: dict[str, str]
    ) -> None:
        """Store the samples and counts of a chunk.

        Args:
            index: Number of the chunk.
            batch: Its samples.
            tally: Its counts.
            environment: Versions and device that have encoded it.
        """
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
            "environment": environment,
        }
        self._write(self._chunk(index, ".json").name, record)

    def count(self, chunks: range) -> Tally:
        """Return the total counts of finished chunks."""
        tally = Tally()
        for chunk in chunks:
            tally.add(self._read_record(chunk)[2])
        return tally

    def environments(self, num_chunks: int) -> dict[str, int]:
        """Return versions and devices that have encoded the finished shards, with their chunks.

        Args:
            num_chunks: Chunks of the job.
        """
        found: Counter[str] = Counter()
        for counts in self._other_environments().values():
            found.update(counts)
        if num_own := num_chunks - found.total():
            found[self._environment()] = num_own
        return dict(sorted(found.items()))

    def _environment(self) -> str:
        return ", ".join(self.read_job().get("environment", {}).values())

    def _other_environments(self) -> dict[str, dict[str, int]]:
        has_some = (self.dir / _ENVIRONMENTS_NAME).exists()
        return self._read(_ENVIRONMENTS_NAME) if has_some else {}

    def _note_environments(self, chunks: range) -> None:
        """Keep the environments of the chunks of a shard, if others than the job's."""
        found = Counter(", ".join(self._read_record(chunk)[3].values()) for chunk in chunks)
        del found[self._environment()]
        noted, name = self._other_environments(), str(chunks.start)
        if found or name in noted:
            self._write(_ENVIRONMENTS_NAME, noted | {name: found})

    def read_batches(self, chunks: range) -> Iterator[pa.RecordBatch]:
        """Iterate over the samples of finished chunks, one chunk at a time."""
        for chunk in chunks:
            yield self._read_chunk(chunk)

    def finish_shard(
        self, writer: DatasetWriter, chunks: range, schema: Schema, *, has_speech: bool
    ) -> None:
        """Write a shard from its chunks, then remove them.

        Args:
            writer: Writer of the part of the dataset.
            chunks: Numbers of its chunks.
            schema: Schema of the chunks.
            has_speech: The dataset has speech, so that audio is counted.
        """
        with writer:
            for batch in self.read_batches(chunks):
                views = Batch(batch, schema)
                for row in range(views.num_samples):
                    writer.write_stored(views.row(row), schema)
            tally = self.count(chunks)
            for reject in tally.rejects:
                writer.reject(**reject)
            writer.add_raw(**tally.raw(has_speech=has_speech))
            self._note_environments(chunks)
        self.drop_chunks(chunks)

    def write_tables(self, tables: dict[str, Any]) -> None:
        """Store the coding tables of the shards."""
        with atomic_file(self.dir / TABLES_NAME) as file:
            file.write(tensors_to_bytes(tables))

    def read_tables(self) -> dict[str, Any] | None:
        """Return the coding tables of the shards; None if they are not fitted yet."""
        path = self.dir / TABLES_NAME
        if not path.exists():
            return None
        try:
            return parse_tensors(read_regular(path))
        except (ShardError, OSError, ValueError) as error:
            raise self._damage(TABLES_NAME, error) from None

    def drop_chunks(self, chunks: range) -> None:
        """Remove the chunks of a finished shard that still exist."""
        for chunk in chunks:
            for suffix in (".json", ".arrow"):
                self._chunk(chunk, suffix).unlink(missing_ok=True)

    def has_shard(self, index: int, num_shards: int) -> bool:
        """True if a shard is finished."""
        return part_path(self.dataset_dir, index, num_shards).exists()

    def _read_chunk(self, index: int) -> pa.RecordBatch:
        """Return the samples of a chunk; reads its file once."""
        num_samples, crc32, *_ = self._read_record(index)
        path = self._chunk(index, ".arrow")
        data = read_regular(path)
        try:
            if zlib.crc32(data) != crc32:
                raise ValueError("its checksum differs from that in its .json")
            with pa.ipc.open_stream(data) as reader:
                batch = reader.read_next_batch()
            if batch.num_rows != num_samples:
                raise ValueError(f"{batch.num_rows} samples; its .json lists {num_samples}")
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            raise self._damage(path.name, error) from None
        return batch

    def _read_record(self, index: int) -> tuple[int, int, Tally, dict[str, str]]:
        """Number of samples, checksum, counts and environment of a chunk."""
        name = self._chunk(index, ".json").name
        record = self._read(name)
        try:
            tally = Tally(**record["tally"])
            return record["num_samples"], record["crc32"], tally, record["environment"]
        except (KeyError, TypeError) as error:
            raise self._damage(name, error) from None

    def _chunk(self, index: int, suffix: str) -> Path:
        return self.dir / f"chunk-{index:06d}{self._suffix}{suffix}"

    def _write(self, name: str, content: object) -> None:
        with atomic_file(self.dir / name) as file:
            file.write(json.dumps(content).encode() + b"\n")

    def _read(self, name: str) -> Any:
        try:
            return read_json(self.dir / name)
        except (FileNotFoundError, ValueError) as error:
            raise self._damage(name, error) from None

    def _damage(self, name: str, error: object) -> JobError:
        """The error to raise; an error of the system, not of the file, is raised as it is."""
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EINVAL):
            raise error
        return JobError(
            f"{self.dir / name}: the record of the unfinished job is damaged ({error}); start over "
            "with --overwrite"
        )
