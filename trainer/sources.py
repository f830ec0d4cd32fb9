"""Datasets of a run: their splits, columns and tokenizers."""

from collections.abc import Iterator, Mapping
from typing import Any

from im2sp.shards import ShardDataset, UnitColumn
from im2sp.trainer.config import MAX_UNITS, TrainConfig
from im2sp.trainer.vocabulary import Vocabulary

VAL_NAMES = ("val", "validation", "valid", "dev")
"""Splits to validate on without being asked, the first that there is."""
MAX_TARGET_IDS = 1 << 20
"""Outputs of the decoder for a column of units: codes times codebooks."""
_DEFAULT_NUM_UNITS = 200


def open_train(config: TrainConfig) -> ShardDataset:
    """The training samples.

    Raises:
        ShardError: The dataset is missing or damaged, or has no such split.
        ValueError: It has splits, but none called train, and none was named.
    """
    splits = ShardDataset(config.shards).manifest.splits
    split = config.split
    if split is None and "train" in splits:
        split = "train"
    if split is None and set(splits) - {""}:
        raise ValueError(f"{config.shards}: has splits {sorted(splits)}; give one with --split")
    return ShardDataset(config.shards, split)


def open_val(config: TrainConfig) -> ShardDataset | None:
    """The validation samples; None if none are named and there is no split val.

    Raises:
        ShardError: The dataset is missing or damaged, or has no such split.
        ValueError: As for `open_train`.
    """
    path = config.val_shards or config.shards
    splits = ShardDataset(path).manifest.splits
    split = config.val_split
    if split is None:
        split = next((name for name in VAL_NAMES if name in splits), None)
    if split is None and config.val_shards is None:
        return None
    if split is None and set(splits) - {""}:
        raise ValueError(f"{path}: has splits {sorted(splits)}; give one with --val-split")
    return ShardDataset(path, split)


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


def captions_of(dataset: ShardDataset) -> Iterator[str]:
    """All captions, image by image: the input for fitting a text model."""
    for sample in dataset:
        yield from (caption for caption in sample.captions if caption)


def utterances_of(dataset: ShardDataset) -> Iterator[list[int]]:
    """The units of all utterances, image by image: the input for fitting unit pieces."""
    for sample in dataset:
        yield from (units.tolist() for units in sample.speech_units if len(units))


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "(none)"
