"""Shards of a tokenize job, made of its finished chunks, and the dataset made of the shards."""

from collections import deque
from typing import Any

from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job.columns import image_tables, tables_of
from im2sp.pipeline.job.config import JobError
from im2sp.pipeline.job.places import FolderOutput
from im2sp.pipeline.job.plan import Plan
from im2sp.pipeline.job.state import JobState
from im2sp.shards import DatasetWriter, Manifest, ShardError, UnitColumn
from im2sp.shards.errors import log


class Publisher:
    """Writer of the shards whose chunks are done; it does not matter who has encoded them.

    Coding tables are fitted to the first shard with speech (and to that with images, unless the
    tokenizer has tables), in the order of the shards. Shards before it wait for them.

    Args:
        plan: Plan of the job.
        state: The job folder, locked for this process.
        output: Place of the dataset.
        missing: Chunks that are not done.
    """

    def __init__(
        self, plan: Plan, state: JobState, output: FolderOutput, missing: list[int]
    ) -> None:
        self._plan, self._state, self._output = plan, state, output
        self._missing = set(missing)
        self._open = deque(range(len(plan.shards)))
        self._waiting: list[int] = []
        self._tables: dict[str, Any] = state.read_tables() or {}
        image, coding = plan.tokenizers.image, plan.tokenizers.image_coding
        if image is not None and coding == job_config.FITTED:
            self._tables |= image_tables(image.name)

    def advance(self, chunk: int | None = None) -> None:
        """Write the shards that are complete.

        Args:
            chunk: A chunk that is done since the last call.
        """
        self._missing -= {chunk}
        while self._open:
            shard = self._open[0]
            chunks = self._plan.shards[shard]
            if self._state.has_shard(shard, len(self._plan.shards)):
                self._state.drop_chunks(chunks)
                self._output.keep(shard, len(self._plan.shards))
            elif self._missing.isdisjoint(chunks):
                self._waiting.append(shard)
                if self._find_tables(chunks):
                    self._write_waiting()
            else:
                return
            self._open.popleft()

    def finish(self) -> None:
        """Write the shards that wait for tables, once all chunks are done."""
        # Without an accepted clip or image there is nothing to fit tables to.
        self._tables |= tables_of(self._unfitted(), [], self._plan.chunk_schema)
        self._write_waiting()

    def join(self) -> Manifest:
        """Join the shards; the manifest is written last.

        It records the environments that have encoded the chunks, if there were several.
        """
        environments = self._state.environments(self._plan.shards[-1].stop)
        is_mixed = len(environments) > 1
        if is_mixed and not self._plan.config.quiet:
            shares = "; ".join(f"{n:,} with {name}" for name, n in environments.items())
            log(f"chunks were encoded in several environments: {shares}")
        settings = {"environments": environments} if is_mixed else {}
        try:
            return self._output.join(self._state, settings)
        except ShardError as error:
            raise JobError(f"{error}; or start over with --overwrite") from None

    def _find_tables(self, chunks: range) -> bool:
        """Fit coding tables to the first speech and images; True if all are known."""
        if unfitted := self._unfitted():
            tally = self._state.count(chunks)
            num = {"image_units": tally.num_images}
            ready = {k: v for k, v in unfitted.items() if num.get(k, tally.num_utterances)}
            if ready:
                batches = self._state.read_batches(chunks)
                self._tables |= tables_of(ready, batches, self._plan.chunk_schema)
                self._state.write_tables(self._tables)
        return not self._unfitted()

    def _unfitted(self) -> dict[str, UnitColumn]:
        """Coded columns whose tables are not known yet."""
        known = {name.partition(".")[0] for name in self._tables}
        return {
            name: column
            for name, column in self._plan.columns.items()
            if column.coding == "coded" and name not in known
        }

    def _write_waiting(self) -> None:
        """Write shards whose chunks are done and whose tables are known."""
        plan = self._plan
        has_speech = plan.tokenizers.speech is not None
        for shard in self._waiting:
            writer = self._writer(shard)
            chunks = plan.shards[shard]
            self._state.finish_shard(writer, chunks, plan.chunk_schema, has_speech=has_speech)
            self._output.keep(shard, len(plan.shards))
        self._waiting.clear()

    def _writer(self, shard: int) -> DatasetWriter:
        """Writer of a shard, as a part of the dataset."""
        plan = self._plan
        image, layout = plan.tokenizers.image, plan.config.shard_layout
        records = {
            "image_units": plan.job.get("image_tokenizer"),
            "speech_units": plan.job.get("speech_tokenizer"),
        }
        return DatasetWriter(
            plan.config.local_dir,
            columns=plan.columns,
            layout=layout.kind,
            samples_per_member=layout.samples_per_member,
            samples_per_shard=plan.inputs.samples_per_shard,
            tokenizers={name: record for name, record in records.items() if record is not None},
            codebooks={} if image is None else {"image_units": image.codebook.numpy()},
            tables=self._tables,
            settings=plan.job["settings"],
            part=(shard, len(plan.shards)),
        )
