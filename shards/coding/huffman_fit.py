"""Tables for the `huffman` codec, fitted to sample ids; the same samples give the same tables."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding.huffman import MAX_CODE_BITS, MAX_COLUMNS, RESERVED_BITS, lengths_to_text
from im2sp.shards.errors import ShardError, check_int

_MIN_COUNT = 2  # a code for a pair seen once costs more than it saves
_SHORT_CODE_BITS = 10  # keeps tables in the CPU cache; costs under 0.002 bits an id
_MAX_LISTED_SHORT = 256


def fit_speech_codec(utterances: Iterable[NDArray[Any]], num_units: int) -> dict[str, Any]:
    """Codec of the `speech_units` column fitted to utterances: order 1.

    Args:
        utterances: (S,) integers each, collapsed as stored, all below `num_units`.
        num_units: Size of the vocabulary, at most 1024. Units that do not occur here can still be
            coded.

    Raises:
        ShardError: An id is out of range; names the utterance.
    """
    check_int("num_units", num_units, 1, MAX_COLUMNS)
    lengths = fit_lengths(utterances, num_units, order=1)
    return {"codec": "huffman", "num_ids": num_units, "order": 1, "lengths": lengths}


def fit_durations_codec(durations: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Codec of the `durations` column fitted to run lengths of 1 to 65,535: order 0.

    Raises:
        ShardError: A run length is out of range; names the utterance.
    """
    lengths = fit_lengths(durations, 65536, order=0, minimum=1)
    return {"codec": "huffman", "num_ids": 65536, "order": 0, "minimum": 1, "lengths": lengths}


def fit_lengths(
    values: Iterable[NDArray[Any]], num_ids: int, *, order: int, minimum: int = 0
) -> str:
    """The `lengths` parameter of a codec fitted to values.

    Args:
        values: (n,) integers each, in [minimum, num_ids).
        num_ids: As in `HuffmanCodec`.
        order: As in `HuffmanCodec`.
        minimum: As in `HuffmanCodec`.

    Raises:
        ShardError: An id is out of range; names the value, as an utterance.
    """
    num_columns = min(num_ids, MAX_COLUMNS)
    counts = np.zeros((num_ids + 1 if order else 1, num_columns), np.int64)
    for number, value in enumerate(values):
        ids = _checked(f"utterance {number}", value, minimum, num_ids)
        if order:
            before = np.concatenate([[num_ids], ids[:-1]])[: ids.size]
            np.add.at(counts, (before, ids), 1)
        else:
            counts[0] += np.bincount(ids[ids < num_columns], minlength=num_columns)
    return lengths_to_text(_fit_lengths(counts))


def code_lengths(weights: Sequence[float], max_bits: int) -> list[int]:
    """Lengths of the optimal prefix code with no code over `max_bits` (package-merge).

    Args:
        weights: At most 2**max_bits; a single one takes no bits.
        max_bits: Longest code.
    """
    leaves = [(weight, (i,)) for i, weight in enumerate(weights)]
    leaves.sort()
    packages: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(max_bits):
        packages = sorted(leaves + packages)
        merged = list(packages)
        packages = [
            (merged[k][0] + merged[k + 1][0], merged[k][1] + merged[k + 1][1])
            for k in range(0, len(merged) - 1, 2)
        ]
    lengths = [0] * len(leaves)
    for _, members in packages[: len(leaves) - 1]:
        for i in members:
            lengths[i] += 1
    return lengths


def _fit_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Code lengths (contexts, columns + 1) from counts (contexts, columns)."""
    lengths = np.zeros((counts.shape[0], counts.shape[1] + 1), np.uint8)
    for row, row_counts in enumerate(counts):
        listed = np.flatnonzero(row_counts >= _MIN_COUNT)
        num_escaped = int(row_counts.sum() - row_counts[listed].sum())
        weights = [*row_counts[listed].tolist(), max(num_escaped, 1)]
        lengths[row, [*listed.tolist(), -1]] = _lengths_below_reserved(weights)
    return lengths


def _lengths_below_reserved(weights: list[int]) -> list[int]:
    """Code lengths that leave a code of `RESERVED_BITS` or less unused."""
    is_short = len(weights) <= _MAX_LISTED_SHORT
    max_bits = _SHORT_CODE_BITS if is_short else MAX_CODE_BITS
    reserved = max(sum(weights) >> RESERVED_BITS, 1)
    while True:
        lengths = code_lengths([*weights, reserved], max_bits)
        if lengths[-1] <= RESERVED_BITS:
            return lengths[:-1]
        reserved += reserved // 4 + 1


def _checked(name: str, ids: NDArray[Any], low: int, high: int) -> NDArray[np.int64]:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ShardError(f"{name}: {array.dtype} of shape {array.shape}; expected (S,) integers")
    array = array.astype(np.int64)
    wrong = np.flatnonzero((array < low) | (array >= high))
    if wrong.size:
        raise ShardError(f"{name}: id {wrong[0]} is {array[wrong[0]]}, not in {low} to {high - 1}")
    return array
