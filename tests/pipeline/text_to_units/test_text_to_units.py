"""The text-to-unit model: characters, padding, the file form, and what is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load, save
from torch.nn.utils.rnn import pad_sequence

from im2sp.pipeline import load_text_to_units
from im2sp.pipeline.text_to_units.model import METADATA_KEY, text_to_units_bytes
from im2sp.pipeline.text_to_units.network import (
    ALPHABET,
    FRAMES,
    NetworkConfig,
    TextToUnitsNetwork,
    characters,
    collapsed,
)

TOKENIZER = {"name": "test", "fingerprint": "ab" * 32}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TextToUnitsNetwork(NetworkConfig(num_units=20, width=16, depth=2)).eval()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A dog  runs .", " a dog runs. "),
        ("two men , one 't-shirt'", " two men, one 't shirt' "),
        ("caf\u00e9\n\u72ac!", " caf "),
        ("", "  "),
    ],
)
def test_characters_that_are_read(text, read):
    assert "".join(ALPHABET[i - 1] for i in characters(text)) == read


def test_collapsed_frames():
    assert collapsed([0, 5, 5, 0, 5, 9, 9]) == [4, 4, 8]
    assert collapsed([]) == collapsed([0, 0]) == []


def test_padding_changes_nothing(network):
    rows = [torch.tensor(characters(text)) for text in ("a dog", "two men ride their bikes")]
    both = network(pad_sequence(rows, batch_first=True))
    for row, scores in zip(rows, both, strict=True):
        (alone,) = network(row[None])
        assert alone.shape == (FRAMES * len(row), 21)
        torch.testing.assert_close(scores[: len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_file_and_back(network, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(text_to_units_bytes(network, TOKENIZER))
    model = load_text_to_units(path, device="cpu")
    assert (model.name, model.num_units) == ("a.safetensors", 20)
    assert model.speech_fingerprint == TOKENIZER["fingerprint"]
    assert model.units("A dog.") == network.units("a dog .")
    assert model.units(" . ") == []
    path.write_bytes(text_to_units_bytes(network, TOKENIZER, torch.float16))
    assert load_text_to_units(path, device="cpu").fingerprint != model.fingerprint


def test_the_bundled_model_speaks():
    model = load_text_to_units(device="cpu")
    units = model.units("A dog is running through the snow.")
    assert model.num_units == 200
    assert 50 < len(units) < 150
    assert all(a != b for a, b in zip(units, units[1:], strict=False))
    assert model.units("A DOG IS RUNNING THROUGH THE SNOW .") == units


def changed(network, change):
    data = text_to_units_bytes(network, TOKENIZER)
    size = int.from_bytes(data[:8], "little")
    notes = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][METADATA_KEY])
    tensors = load(data)
    change(notes, tensors)
    return save(tensors, {METADATA_KEY: json.dumps(notes)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, t: n.pop("text_to_units"), "not a text-to-unit model ('text_to_units'); expect"),
        (lambda n, t: n.update(speech_tokenizer=[1]), "not a text-to-unit model ('list' object"),
        (lambda n, t: n["text_to_units"].update(width=0), "width is 0, expected a number from 1"),
        (lambda n, t: n["text_to_units"].update(depth=[1]), "depth is [1], expected a number"),
        (lambda n, t: n["text_to_units"].update(more=1), "unexpected keyword argument 'more'"),
        (lambda n, t: n["text_to_units"].update(depth=64), "lacks readers.2.convolution.weight"),
        (lambda n, t: t.pop("norm.bias"), "lacks norm.bias of a text-to-unit model"),
        (lambda n, t: t["norm.bias"].fill_(torch.nan), "norm.bias holds values that are not fin"),
        (lambda n, t: n["text_to_units"].update(num_units=9), "shape [21, 16], expected numbers"),
    ],
)
def test_other_files_are_refused(network, tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(changed(network, change))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_text_to_units(path)
    assert str(path) in str(error.value)
    path.write_bytes(save({"x": torch.zeros(1)}))
    with pytest.raises(ValueError, match="expected a file of tools/fit_text_to_units"):
        load_text_to_units(path)
