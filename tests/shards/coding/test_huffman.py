import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Manifest,
    Sample,
    ShardDataset,
    ShardError,
    fit_durations_codec,
    fit_speech_codec,
    verify_dataset,
)
from im2sp.shards.coding import huffman, make_codecs
from im2sp.shards.coding.huffman import HuffmanCodec, lengths_to_text, text_to_lengths
from im2sp.shards.coding.huffman_fit import code_lengths
from im2sp.shards.coding.packing import SmallWork
from support.huffman import naive_decode


@pytest.fixture(autouse=True, scope="module", params=[2**60, 0], ids=["numpy", "kernels"])
def limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Encode with numpy or kernels; decoding always uses kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huffman, "small_work", SmallWork(request.param))
        yield


def codec_of(column: dict[str, Any]) -> HuffmanCodec:
    codec = make_codecs({**DEFAULT_COLUMNS, "speech_units": column}).speech_units
    assert isinstance(codec, HuffmanCodec)
    return codec


def raw(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def chain(num: int, size: int, num_units: int, seed: int) -> list[np.ndarray]:
    """Utterances in which each unit has few likely successors and rarely any other."""
    rng = np.random.default_rng(seed)
    utterances = []
    for _ in range(num):
        steps = rng.geometric(0.4, size) + (rng.random(size) < 0.02) * rng.integers(0, 99, size)
        utterances.append((np.cumsum(steps) % num_units).astype(np.uint16))
    return utterances


TINY = np.array(
    [  # ids 0 to 3, then the escape
        [0, 1, 2, 0, 3],
        [2, 0, 0, 2, 2],
        [0, 0, 0, 0, 1],
        [9, 9, 9, 9, 9],
        [1, 2, 3, 4, 5],
    ],
    np.uint8,
)
TINY_COLUMN = {"codec": "huffman", "num_ids": 4, "order": 1, "lengths": "lvA/ISISmZlZIUM="}
SPEECH_COLUMN = fit_speech_codec(chain(20, 200, 50, 0), 60)
DURATIONS_COLUMN = fit_durations_codec([np.arange(1, 30) % 7 + 1, np.array([3000, 1, 2])])
COLUMNS = {"tiny": TINY_COLUMN, "speech": SPEECH_COLUMN, "durations": DURATIONS_COLUMN}


@pytest.fixture(params=list(COLUMNS))
def column(request: pytest.FixtureRequest) -> dict[str, Any]:
    return COLUMNS[request.param]


def test_golden_bytes() -> None:
    assert lengths_to_text(TINY) == TINY_COLUMN["lengths"]
    assert text_to_lengths(TINY_COLUMN["lengths"], 5, 4).tolist() == TINY.tolist()
    codec = codec_of(TINY_COLUMN)
    for ids, coded in (
        ([], ""),
        ([0], "fe"),
        ([0, 1, 2, 3], "a4 ff"),
        ([0, 1, 3, 2, 1, 0, 0], "08 48 8c"),
        ([2, 2, 2, 2], "23 f9"),
    ):
        value = codec.encode(np.array(ids, np.uint16))
        assert (ids, value.hex(" ")) == (ids, coded)
        assert codec.decode(raw(value)).tolist() == ids
        assert naive_decode(value, TINY_COLUMN) == ids


def any_ids(column: dict[str, Any]) -> st.SearchStrategy[list[int]]:
    low, high = column.get("minimum", 0), column["num_ids"] - 1
    return st.lists(st.integers(low, min(high, low + 8)) | st.integers(low, high), max_size=60)


@given(st.data())
def test_round_trip_of_any_ids(data: st.DataObject) -> None:
    column = data.draw(st.sampled_from(list(COLUMNS.values())))
    ids = data.draw(any_ids(column))
    codec = codec_of(column)
    value = codec.encode(np.array(ids, np.uint16))
    found = codec.decode(raw(value))
    assert found.dtype == np.uint16
    assert found.tolist() == ids
    assert naive_decode(value, column) == ids


@given(st.sampled_from(list(COLUMNS.values())), st.binary(max_size=40), st.binary(max_size=40))
@example(TINY_COLUMN, b"", b"\xff")
@example(TINY_COLUMN, b"\x00" * 40, b"\xff" * 20)
def test_any_bytes_are_the_one_coding_of_ids_or_refused(
    column: dict[str, Any], data: bytes, behind: bytes
) -> None:
    codec = codec_of(column)
    joined = raw(data + behind)
    try:
        expected = naive_decode(data, column)
    except ValueError:
        for refused in (raw(data), joined[: len(data)]):
            with pytest.raises(ShardError, match="huffman: value 0, bit [0-9]+"):
                codec.decode(refused)
        return
    assert codec.encode(np.array(expected, np.uint16)) == data
    assert codec.decode(raw(data)).tolist() == expected
    assert codec.decode(joined[: len(data)]).tolist() == expected


@given(st.sampled_from(list(COLUMNS.values())), st.data())
def test_damage_never_leaves_the_buffers(column: dict[str, Any], data: st.DataObject) -> None:
    """Truncated, extended and changed values are refused or decoded as by the reference."""
    codec = codec_of(column)
    value = bytearray(codec.encode(np.array(data.draw(any_ids(column)), np.uint16)))
    for _ in range(data.draw(st.integers(0, 3))):
        if value:
            value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = bytes(value[: data.draw(st.integers(0, len(value)))]) + data.draw(
        st.binary(max_size=3)
    )
    try:
        expected = naive_decode(damaged, column)
    except ValueError:
        with pytest.raises(ShardError):
            codec.decode(raw(damaged))
    else:
        assert codec.decode(raw(damaged)).tolist() == expected


def test_nothing_is_written_behind_the_ids(column: dict[str, Any]) -> None:
    """Run the kernel on random bytes, with guards on both sides of each output."""
    from im2sp.shards.coding import huffman, huffman_kernels

    rng = np.random.default_rng(3)
    codec = codec_of(column)
    tables = huffman._tables(codec)
    for size in [*range(20), 100, 1000]:
        data = rng.integers(0, 256, size).astype(np.uint8)
        num = 8 * size // tables.shortest_bits + 2
        ids = np.full(num + 16, 60_123, np.uint16)
        ends = np.full(2 + 16, -7)
        huffman_kernels.decode(
            data,
            np.array([0, size]),
            tables.singles,
            tables.pairs,
            tables.codes,
            tables.settings,
            ids[8:-8],
            ends[8:-8],
        )
        assert set(ids[:8].tolist() + ids[-8:].tolist()) == {60_123}
        assert set(ends[:8].tolist() + ends[-8:].tolist()) == {-7}


def test_many_values_in_one_call(column: dict[str, Any]) -> None:
    codec = codec_of(column)
    rng = np.random.default_rng(1)
    low = column.get("minimum", 0)
    values = [rng.integers(low, column["num_ids"], size) for size in (0, 1, 50, 0, 3, 200, 0)]
    coded = [codec.encode(ids) for ids in values]
    offsets = np.cumsum([3, *map(len, coded)])
    data = raw(b"abc" + b"".join(coded) + b"behind")
    ids, id_offsets = codec.decode_values(data, offsets)
    assert ids.tolist() == np.concatenate(values).tolist()
    assert id_offsets.tolist() == np.cumsum([0, *map(len, values)]).tolist()
    empty, no_offsets = codec.decode_values(data, offsets[:1])
    assert (empty.size, no_offsets.tolist()) == (0, [0])
    strided = np.repeat(raw(coded[2]), 2)[::2]
    assert codec.decode(strided).tolist() == values[2].tolist()


@pytest.mark.parametrize("offsets", [[0, 5], [-1, 2], [0, 2, 1, 3], [], [[0, 1]]])
def test_offsets_outside_the_data_are_refused(offsets: list[Any]) -> None:
    with pytest.raises(ShardError, match="do not ascend inside the 4 bytes"):
        codec_of(TINY_COLUMN).decode_values(raw(b"\xff" * 4), np.array(offsets, np.int64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("ff", "value 0, bit 0: no code starts there"),
        ("fe ff", "value 0, bit 1: no code starts there"),
        ("a4 ff ff", "bit 9: no code starts there"),
        ("23", "bit 6: the code there is cut off"),
        ("0f", "bit 0: an id after an escape is out of range or has its own code"),
    ],
)
def test_refused_bytes(data: str, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        codec_of(TINY_COLUMN).decode(raw(bytes.fromhex(data)))


@pytest.mark.parametrize("ids", [[1, 4], [1, 300], [1, 70_000], [1, -1]])
def test_ids_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(ShardError, match=f"id 1 is {ids[1]}, not in 0 to 3"):
        codec_of(TINY_COLUMN).encode(np.array(ids))
    with pytest.raises(ShardError, match="id 0 is 0, not in 1 to 65535"):
        codec_of(DURATIONS_COLUMN).encode(np.array([0]))


def changed(**params: Any) -> dict[str, Any]:
    return {**TINY_COLUMN, **params}


def text(lengths: list[list[int]]) -> str:
    return lengths_to_text(np.array(lengths, np.uint8))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (changed(order=2), "order is 2"),
        (changed(order=True), "order is True"),
        (changed(num_ids=0), "num_ids is 0"),
        (changed(num_ids=1025), "num_ids is 1025; expected a whole number from 1 to 1024"),
        (changed(order=0, num_ids=65537), "num_ids is 65537"),
        (changed(minimum=4), "minimum is 4"),
        (changed(minimum=1), "an id below minimum 1 has a code"),
        (changed(lengths=3), "lengths is a int; expected base64"),
        (changed(lengths=None), "lengths is a NoneType"),
        (changed(lengths="lvA=="), "not base64"),
        (changed(lengths="läng"), "not base64"),
        (changed(lengths=""), "0 bytes do not match 5 contexts with 4 ids"),
        (changed(lengths="lvA/ISISmZlZIUM"), "not base64"),
        (changed(lengths="lvA/ISISmZlZIUMA"), "12 bytes do not match"),
        (changed(order=0, num_ids=2, lengths="IoI="), "2 bytes do not match 1 contexts"),
        (changed(num_ids=5), "11 bytes do not match 6 contexts"),
        (changed(order=0, num_ids=2, lengths=text([[0, 13, 1]])), "0 or over 12 bits"),
        (changed(order=0, num_ids=2, lengths="AA=="), "0 or over 12 bits"),
        (changed(order=0, num_ids=2, lengths=text([[2, 1, 2]])), "context 0 has more codes"),
        (changed(order=0, num_ids=1, lengths=text([[1, 1]])), "more codes than its lengths allow"),
        ({"codec": "huffman", "num_ids": 4, "order": 1}, "huffman: .*lengths"),
        (changed(table=1), r"codec huffman has no parameter \['table'\]"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ShardError, match=f"^column speech_units: .*({message})"):
        make_codecs({**DEFAULT_COLUMNS, "speech_units": params})


def test_images_are_never_huffman_coded() -> None:
    with pytest.raises(ShardError, match="needs codec packed"):
        make_codecs({**DEFAULT_COLUMNS, "image_units": TINY_COLUMN})


def test_fitting_is_deterministic_and_codes_what_it_never_saw() -> None:
    utterances = chain(30, 100, 40, 2)
    column = fit_speech_codec(utterances, 200)
    assert column == fit_speech_codec(iter(utterances[::-1]), 200)
    codec = codec_of(column)
    rng = np.random.default_rng(0)
    for ids in (rng.integers(0, 200, 500), np.full(50, 7), np.full(50, 199), np.zeros(0, int)):
        assert codec.decode(raw(codec.encode(ids))).tolist() == ids.tolist()
    for nothing in (fit_speech_codec([], 3), fit_speech_codec([np.zeros(0)], 3)):
        assert codec_of(nothing).decode(raw(codec_of(nothing).encode(np.arange(3)))).size == 3
    assert len(fit_speech_codec([np.zeros(9, int)], 1)["lengths"]) > 0


@pytest.mark.parametrize("num_units", [1, 2, 3, 255, 256, 257, 1024])
def test_any_size_of_vocabulary(num_units: int) -> None:
    """Flat counts, so contexts list up to all units."""
    ids = np.random.default_rng(0).integers(0, num_units, 3 * num_units)
    once = np.concatenate([np.stack([np.zeros(num_units, int), np.arange(num_units)], 1).ravel()])
    column = fit_speech_codec([ids, once, once], num_units)
    codec = codec_of(column)
    for one in (ids, once):
        assert codec.decode(raw(codec.encode(one))).tolist() == one.tolist()


def test_fitting_refuses_by_name() -> None:
    with pytest.raises(ShardError, match="utterance 1: id 2 is 9, not in 0 to 8"):
        fit_speech_codec([np.arange(9), np.array([0, 1, 9])], 9)
    with pytest.raises(ShardError, match="utterance 0: id 0 is 0, not in 1 to 65535"):
        fit_durations_codec([np.array([0])])
    with pytest.raises(ShardError, match=r"float64 of shape \(2,\); expected"):
        fit_speech_codec([np.array([0.0, 1.0])], 9)
    with pytest.raises(ShardError, match="num_units is 1025"):
        fit_speech_codec([], 1025)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=16), st.integers(4, 12))
def test_code_lengths_are_as_short_as_huffmans_and_limited(weights: list[int], bits: int) -> None:
    lengths = code_lengths(weights, bits)
    assert max(lengths) <= bits
    assert sum(2.0**-length for length in lengths) == 1
    heap, best = sorted(weights), 0
    while len(heap) > 1:
        merged = heap.pop(0) + heap.pop(0)
        best += merged
        heap = sorted([*heap, merged])
    cost = sum(length * weight for length, weight in zip(lengths, weights, strict=True))
    assert cost >= best
    if bits == 12 and max(weights) < 100:
        assert cost == best


def test_threads_decode_at_the_same_time() -> None:
    ids = np.concatenate(chain(1, 200_000, 50, 4))
    codec = codec_of(SPEECH_COLUMN)
    value = raw(codec.encode(ids))
    results: list[bool] = []

    def check() -> None:
        results.extend(bool((codec.decode(value) == ids).all()) for _ in range(3))

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 12


@pytest.fixture
def coded_columns() -> dict[str, Any]:
    units = chain(50, 30, 200, 6)
    columns: dict[str, Any] = dict(DEFAULT_COLUMNS)
    columns["speech_units"] = fit_speech_codec(units, 200)
    columns["durations"] = fit_durations_codec([u % 5 + 1 for u in units])
    return columns


def test_a_dataset_of_it(
    tmp_path: Path,
    layout: str,
    coded_columns: dict[str, Any],
    make_samples: Callable[..., list[Sample]],
    write_dataset: Callable[..., Manifest],
    assert_same: Callable[[Sample, Sample], None],
) -> None:
    samples = make_samples(23)
    manifest = write_dataset(tmp_path, samples, layout, columns=coded_columns, with_extras=True)
    assert Manifest.read(tmp_path) == manifest
    assert verify_dataset(tmp_path) == []
    for found, expected in zip(ShardDataset(tmp_path), samples, strict=True):
        assert_same(found, expected)


def test_verify_names_a_value_that_is_no_coding(
    tmp_path: Path,
    coded_columns: dict[str, Any],
    write_dataset: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HuffmanCodec, "encode", lambda *_: b"\xff\xff")
    units = [np.array([1, 2], np.uint16)]
    write_dataset(tmp_path, [Sample(key="a", speech_units=units)], columns=coded_columns)
    problems = [str(problem) for problem in verify_dataset(tmp_path)]
    assert len(problems) == 1
    assert "huffman: value 0, bit 0: no code starts there" in problems[0]


@pytest.mark.parametrize("name", ["lj100", "vctk100"])
def test_bits_a_unit_on_clips_held_back(shared_data: Path, name: str) -> None:
    """Code a quarter of the clips with tables fitted to the others."""
    from im2sp.tools.bench.codec import read_clips

    clips = read_clips([shared_data / "speech" / f"units-{name}.jsonl.gz"])
    train = [clip for i, clip in enumerate(clips) if i % 4]
    speech = codec_of(fit_speech_codec([units for units, _ in train], 100))
    durations = codec_of(fit_durations_codec([runs for _, runs in train]))
    num = num_speech_bits = num_durations_bits = 0
    for units, runs in clips[::4]:
        num += units.size
        value = speech.encode(units)
        num_speech_bits += 8 * len(value)
        assert (speech.decode(raw(value)) == units).all()
        value = durations.encode(runs)
        num_durations_bits += 8 * len(value)
        assert (durations.decode(raw(value)) == runs).all()
    assert num_speech_bits / num <= 3.2
    assert num_durations_bits / num <= 2.1
