"""Datasets of a run: their splits, columns and tokenizers."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from im2sp.shards import ShardDataset, UnitColumn, check_columns
from im2sp.shards.stores import folder_or_url
from im2sp.trainer.config import MAX_UNITS, TrainConfig
from im2sp.trainer.vocabulary import Vocabulary

VAL_NAMES = ("val", "validation", "valid", "dev")
"""Splits to validate on without being asked, the first that there is."""
MAX_TARGET_IDS = 1 << 20
"""Outputs of the decoder for a column of units: codes times codebooks."""
_DEFAULT_NUM_UNITS = 200


def open_train(config: TrainConfig) -> list[ShardDataset]:
    """The training samples of each dataset.

    Raises:
        ShardError: A dataset is missing or damaged, or has no such split.
        ValueError: It has splits, but none called train, and none was named; or the datasets have
            other columns or units of other tokenizers.
    """
    found: list[ShardDataset] = []
    for path in config.shard_dirs:
        splits, split = ShardDataset(path).manifest.splits, config.split
        if split is None and "train" in splits:
            split = "train"
        if split is None and set(splits) - {""}:
            raise ValueError(f"{path}: has splits {sorted(splits)}; give one with --split")
        found.append(ShardDataset(path, split))
    _check_same(found, config, found[0])
    return found


def open_val(config: TrainConfig, first: ShardDataset) -> list[ShardDataset]:
    """The validation samples of each dataset that has them; empty if none has, nor was asked for.

    Raises:
        ShardError: A dataset is missing or damaged, or none has the split that was named.
        ValueError: As for `open_train`; they are compared with `first`, the first of training.
    """
    found: list[ShardDataset] = []
    given = config.val_shards
    paths = config.shard_dirs if given is None else [folder_or_url(given)]
    for path in paths:
        splits, split = ShardDataset(path).manifest.splits, config.val_split
        if split is None:
            split = next((name for name in VAL_NAMES if name in splits), None)
        if config.val_shards is None and (split is None or split not in splits):
            continue
        if split is None and set(splits) - {""}:
            raise ValueError(f"{path}: has splits {sorted(splits)}; give one with --val-split")
        found.append(ShardDataset(path, split))
    if not found and config.val_split is not None:
        ShardDataset(paths[0], config.val_split)  # names the splits that there are
    _check_same(found, config, first)
    return found


def copy_shards(datasets: Iterable[ShardDataset], *, is_quiet: bool) -> None:
    """Copy the shards of datasets in stores to this machine, with a progress bar.

    A step reads samples of all shards, so the first one would copy them without it.
    """
    for dataset in datasets:
        if dataset.files.is_copy:
            with tqdm(
                total=sum(shard.size_bytes for shard in dataset.manifest.shards),
                desc="copy",
                unit="B",
                unit_scale=True,
                leave=False,
                disable=is_quiet,
                file=sys.stderr,
            ) as bar:
                dataset.copy_shards(bar.update)


def _check_same(datasets: list[ShardDataset], config: TrainConfig, first: ShardDataset) -> None:
    columns = config.unit_columns
    expected = fingerprints(first, columns)
    for dataset in datasets:
        check_columns([first, dataset], columns.values())
        found = fingerprints(dataset, columns)
        check_fingerprints(found, expected, str(dataset.path), str(first.path))


def fingerprints(dataset: ShardDataset, columns: Mapping[str, str]) -> dict[str, str | None]:
    """Kind of unit -> fingerprint of its tokenizer, None if unknown; `columns` as below."""
    records = tokenizer_records(dataset, columns)
    return {kind: record.get("fingerprint") for kind, record in records.items()}


def tokenizer_records(
    dataset: ShardDataset, columns: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Kind of unit -> record of its tokenizer in the manifest (name, view ..).

    Args:
        dataset: The dataset.
        columns: Kind of unit -> column, as `TrainConfig.unit_columns`.
    """
    of = dataset.manifest.tokenizer_of
    return {kind: dict(of(column) or {}) for kind, column in columns.items()}


def check_fingerprints(
    found: Mapping[str, str | None], expected: Mapping[str, str | None], place: str, other: str
) -> None:
    """Refuse units of another tokenizer.

    Args:
        found: Fingerprints of one dataset.
        expected: Required fingerprints; only kinds in both are compared.
        place: The dataset, for the message.
        other: Owner of the required fingerprints, for the message.

    Raises:
        ValueError: They differ.
    """
    for kind, fingerprint in expected.items():
        if kind in found and found[kind] != fingerprint:
            raise ValueError(
                f"{place}: its {kind} units have the fingerprint {_short(found[kind])}, those of"
                f" {other} {_short(fingerprint)}; units of different tokenizers cannot be mixed:"
                " tokenize with the same one, or start a separate run with another --out"
            )


def speech_vocabulary(dataset: ShardDataset) -> Vocabulary:
    """The vocabulary of a dataset's speech units."""
    num_units = (dataset.manifest.speech_tokenizer or {}).get("num_units")
    column = dataset.columns.get("speech_units")
    if num_units is None and dataset.schema.version > 1 and isinstance(column, UnitColumn):
        num_units = column.num_codes
    return Vocabulary(kind="speech", num_ids=num_units or _DEFAULT_NUM_UNITS)


def target_vocabulary(config: TrainConfig, dataset: ShardDataset) -> Vocabulary | None:
    """The vocabulary of a target of units; None if the target is text or words.

    Raises:
        ValueError: The dataset has no such column of units, or its units make no sequence.
    """
    if config.target in ("text", "words"):
        return None
    if config.target == "speech":
        return speech_vocabulary(dataset)
    column = dataset.columns.get(config.target)
    place = f"{dataset.path}: --target {config.target}"
    if not isinstance(column, UnitColumn):
        known = [name for name, kind in dataset.columns.items() if isinstance(kind, UnitColumn)]
        raise ValueError(
            f"{place} is no column of units; expected speech, text, words or one of"
            f" {', '.join(sorted(known)) or '(none)'}"
        )
    if column.num_variable > 1:
        raise ValueError(f"{place} has the shape {column.shape}, expected at most one None")
    num_codebooks = column.num_fixed if column.num_variable else 1
    num_ids = num_codebooks * column.num_codes
    if num_ids > MAX_TARGET_IDS or (not column.num_variable and column.num_fixed >= MAX_UNITS):
        raise ValueError(
            f"{place} has {num_codebooks:,} x {column.num_codes:,} codes and the shape"
            f" {column.shape}, expected at most {MAX_TARGET_IDS:,} codes, {MAX_UNITS - 1:,} units"
        )
    return Vocabulary(kind="units", num_ids=num_ids, shape=column.shape)


def longest_of(config: TrainConfig, dataset: ShardDataset) -> int:
    """Maximum length of an utterance or array in units, or of a caption in characters."""
    column = dataset.columns.get(config.target)
    if config.max_length is None and isinstance(column, UnitColumn) and not column.num_variable:
        return column.num_fixed
    return config.longest


def captions_of(datasets: Iterable[ShardDataset]) -> Iterator[str]:
    """All captions, image by image: the input for fitting a text model."""
    for sample in itertools.chain.from_iterable(datasets):
        yield from (caption for caption in sample.captions if caption)


def utterances_of(datasets: Iterable[ShardDataset]) -> Iterator[list[int]]:
    """The units of all utterances, image by image: the input for fitting unit pieces."""
    for sample in itertools.chain.from_iterable(datasets):
        yield from (units.tolist() for units in sample.speech_units if len(units))


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "(none)"
