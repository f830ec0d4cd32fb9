"""Engine `ray` of the tokenize job: chunks are encoded by the workers of a Ray cluster.

Ray decides only who encodes which chunk. Workers hand chunks to the driver, which stores them in
the same job folder as those of the local engine, so a job that was begun by one engine is resumed
by the other. All nodes need the source and the weights under the same paths, not the output.
"""

import importlib
import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from im2sp.pipeline.job.config import JobConfig, JobError
from im2sp.pipeline.job.decode_pool import DecodePool, media_of
from im2sp.pipeline.job.encode import MediaEncoder, encode_chunk
from im2sp.pipeline.job.inputs import Chunk
from im2sp.pipeline.job.output import differences
from im2sp.pipeline.job.plan import EncodedChunk, Loaders, Plan, Tokenizers
from im2sp.shards.schema import Schema

CALLS_IN_FLIGHT = 2
"""Chunks submitted to a worker at once, so that it never waits for the driver."""
MAX_RETRIES = 3
"""Further attempts at a chunk whose worker died."""
BACKUP_S = 30.0
"""Age of a chunk from which an idle worker encodes it as well."""
MAX_SILENCE_S = 6 * 3600
"""Time without a finished chunk after which the job ends."""
_ENDING_S = 5
_CONNECT_S = 10
_LOCAL_CLUSTER = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}


class Worker:
    """Actor that keeps the tokenizers and the processes that decode, and encodes chunks.

    Args:
        config: Settings of the job.
        schema: Schema of the chunks.
        loaders: The tokenizers or functions that load them; None for one that is not needed.
        expected: Fingerprints and environment of the driver.
        folder: Folder that relative paths start from.
    """

    def __init__(
        self,
        config: JobConfig,
        schema: Schema,
        loaders: Loaders,
        expected: dict[str, Any],
        folder: str,
    ) -> None:
        self._config, self._schema, self._folder = config, schema, folder
        self._loaders, self._expected = loaders, expected

    @cached_property
    def _loaded(self) -> Tokenizers:
        """The tokenizers, once they are found to be those of the driver."""
        with suppress(FileNotFoundError):  # not needed where all paths are absolute
            os.chdir(self._folder)
        load_image, load_speech = self._loaders
        loaded = Tokenizers(
            image=load_image() if callable(load_image) else load_image,
            speech=load_speech() if callable(load_speech) else load_speech,
            image_coding=None,
            coding=None,
        )
        found = differences(self._expected, identity_of(loaded, self._config))
        if found:
            raise JobError(
                f"a worker on {os.uname().nodename} differs from the driver: {'; '.join(found)}"
            )
        return loaded

    @cached_property
    def _encoder(self) -> MediaEncoder:
        return MediaEncoder(self._loaded.image, self._loaded.speech, self._config.view_name)

    @cached_property
    def _pool(self) -> DecodePool:
        config, is_cpu = self._config, self._loaded.environment["device"].startswith("cpu ")
        pool = DecodePool(
            num_workers=1 if is_cpu else config.num_workers,
            view=config.view_name,
            max_pixels=config.max_pixels,
            max_audio_s=config.max_audio_s,
            timeout_s=config.decode_timeout_s,
        ).__enter__()
        pool.start()
        return pool

    def encode(self, number: int, chunk: Chunk, file: Path | None) -> EncodedChunk:
        """Encode the inputs of a chunk.

        Args:
            number: Number of the chunk.
            chunk: The chunk.
            file: A file of it that the driver sees, if there is one.

        Raises:
            JobError: The tokenizers differ from the driver's, or `file` is missing here.
        """
        encoder = self._encoder
        if file is not None and not file.exists():
            raise JobError(
                f"{file}: missing on {os.uname().nodename}; workers need the source under the same "
                "path as the driver"
            )
        with chunk.opened() as inputs:
            decoded = self._pool.decode(
                medium for item in inputs.items for medium in media_of(item)
            )
            batch = encode_chunk(encoder, inputs, decoded, self._schema, lambda _: None)
        return EncodedChunk(number, batch, inputs.tally, self._loaded.environment)

    def stop(self) -> None:
        """End the processes that decode."""
        if "_pool" in self.__dict__:
            self._pool.__exit__(None, None, None)


def identity_of(tokenizers: Tokenizers, config: JobConfig) -> dict[str, Any]:
    """Return fingerprints of the tokenizers, and the environment unless it may be mixed."""
    found: dict[str, Any] = {} if config.allow_mixed else dict(tokenizers.environment)
    for name, one in (("image", tokenizers.image), ("speech", tokenizers.speech)):
        if one is not None:
            found[f"{name}_tokenizer"] = {"fingerprint": one.fingerprint}
    return found


class _Call(NamedTuple):
    """Call of a worker that has not ended."""

    worker: int
    chunk: int
    begin_s: float


def _backups(calls: Iterable[_Call], left: set[int], num_workers: int) -> Iterator[tuple[int, int]]:
    """Idle workers, each with a chunk that another worker has had for long."""
    calls = list(calls)
    idle = [worker for worker in range(num_workers) if worker not in {one.worker for one in calls}]
    copies = Counter(one.chunk for one in calls)
    oldest = sorted(
        (one.begin_s, one.chunk)
        for one in calls
        if one.chunk in left
        and copies[one.chunk] == 1
        and time.monotonic() - one.begin_s > BACKUP_S
    )
    return zip(idle, (chunk for _, chunk in oldest), strict=False)


def _check_reachable(address: str) -> None:
    """Refuse an address at which no cluster answers, which would end the process after minutes."""
    services: Any = importlib.import_module("ray._private.services")
    try:
        found = services.canonicalize_bootstrap_address(address)
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise JobError(
            f"RAY_ADDRESS={address}: no Ray cluster answers ({error}); start one with `ray start "
            "--head`, or unset RAY_ADDRESS for workers on this machine alone"
        ) from None


class RayCluster:
    """The workers of a job on a Ray cluster; a context manager, which ends them on exit.

    The cluster is that of `RAY_ADDRESS`, or else one on this machine, with a token of its session.

    Args:
        plan: Plan of the job.
        loaders: As for `run_job`; pickled for the workers.
    """

    def __init__(self, plan: Plan, loaders: Loaders) -> None:
        self._plan = plan
        image, speech = loaders
        self._loaders = (
            None if plan.tokenizers.image is None else image,
            None if plan.tokenizers.speech is None else speech,
        )
        self._workers: list[Any] = []

    def __enter__(self) -> "RayCluster":
        address = os.environ.get("RAY_ADDRESS")
        if not address:  # Ray reads these when it is imported
            os.environ.update(_LOCAL_CLUSTER)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray = _ray()
        if address and "://" not in address:
            _check_reachable(address)
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="error",
            **({} if address else {"include_dashboard": False, "object_store_memory": 1 << 27}),
        )
        return self

    def __exit__(self, *_: object) -> None:
        ray = _ray()
        ray.wait(
            [worker.stop.remote() for worker in self._workers] or [ray.put(None)],
            num_returns=max(len(self._workers), 1),
            timeout=_ENDING_S,
        )
        ray.shutdown()

    def encode(self, chunks: list[int]) -> Iterator[EncodedChunk]:
        """Encode chunks, handed out in ascending order; iterate over those that are done.

        A worker that has nothing left to do encodes chunks of others that take long, so neither a
        worker that hangs nor a lost node without a replacement stops the job.

        Raises:
            JobError: A worker differs from the driver or does not see the source, a chunk's
                workers died again and again, or all workers hang.
        """
        ray = _ray()
        self._start(len(chunks))
        waiting, left = deque(chunks), set(chunks)
        calls: dict[Any, _Call] = {}

        def submit(worker: int, chunk: int) -> None:
            source = self._plan.inputs.chunk(chunk)
            actor = self._workers[worker]
            call = actor.encode.remote(chunk, source, source.seen_file)
            calls[call] = _Call(worker, chunk, time.monotonic())

        for worker in CALLS_IN_FLIGHT * list(range(len(self._workers))):
            if waiting:
                submit(worker, waiting.popleft())
        last_s = time.monotonic()
        while left:
            for done in ray.wait(list(calls), num_returns=1, timeout=BACKUP_S)[0]:
                call = calls.pop(done)
                encoded = self._result(done, call.chunk) if call.chunk in left else None
                if waiting:
                    submit(call.worker, waiting.popleft())
                if encoded is not None:
                    left.remove(call.chunk)
                    yield encoded
                    last_s = time.monotonic()
            for backup in _backups(calls.values(), left, len(self._workers)):
                submit(*backup)
            if time.monotonic() - last_s > MAX_SILENCE_S:
                raise JobError(
                    f"no worker has finished a chunk for {MAX_SILENCE_S / 3600:g} h; see `ray "
                    "status` and the logs of Ray; finished work is kept: run the same command "
                    "again to resume"
                )

    def _result(self, call: Any, chunk: int) -> EncodedChunk:
        """The chunk of a call that has ended."""
        ray = _ray()
        try:
            return ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError:
            raise JobError(
                f"chunk {chunk} (from {self._plan.inputs.chunk(chunk).name}): its workers died "
                f"{MAX_RETRIES + 1} times; see the logs of Ray; if memory ran out, use fewer "
                "--num-workers"
            ) from None

    def _start(self, num_chunks: int) -> None:
        """Start one worker for each GPU, or up to `num_workers` on CPUs."""
        ray, plan, config = _ray(), self._plan, self._plan.config
        resources = ray.cluster_resources()
        if plan.job["settings"]["device"] == "cpu":
            share, num = {"num_cpus": 1}, min(config.num_workers, int(resources.get("CPU", 0)))
        else:
            share, num = {"num_gpus": 1}, int(resources.get("GPU", 0))
        if num < 1:
            raise JobError(f"the Ray cluster has no {'CPU' if 'num_cpus' in share else 'GPU'}")
        actor = ray.remote(max_restarts=-1, max_task_retries=MAX_RETRIES, **share)(Worker)
        expected = identity_of(plan.tokenizers, config)
        self._workers = [
            actor.remote(config, plan.chunk_schema, self._loaders, expected, os.getcwd())
            for _ in range(min(num, num_chunks))
        ]


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise JobError("--engine ray needs the package ray: pip install 'im2sp[ray]'") from None
    return ray
