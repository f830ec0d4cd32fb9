import json
from pathlib import Path

import pytest
import torch

from im2sp.pipeline.image_tokenizer.network import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.image_tokenizer.weights import image_tokenizer_bytes
from im2sp.tools.bench.encode import COLUMNS, Settings, photographs, plain_units, run
from im2sp.tools.bench.timing import table


def test_rows_and_table():
    rows = run(Settings(size="tiny", image_size_px=64, num_images=2, repeats=1))
    assert [row["case"] for row in rows] == ["plain-fp32", "ours-fp32", "ours-bf16"]
    assert json.loads(json.dumps(rows[0]))["speedup"] == 1.0
    assert rows[1]["equal_units"] == 1.0
    assert rows[0]["distinct_units"] > 30
    assert "num_clips" not in rows[0]
    assert "ours-bf16" in table(rows, COLUMNS)


def test_given_weights_and_unknown_cases(tmp_path: Path):
    torch.manual_seed(0)
    stack = TransformerConfig(width=64, depth=1, heads=1, mlp_width=64)
    network = ViTVQGAN(ViTVQGANConfig(encoder=stack, decoder=stack, num_codes=50))
    path = tmp_path / "x.safetensors"
    path.write_bytes(image_tokenizer_bytes(network))
    settings = Settings(
        cases=("ours-fp32",), weights=str(path), image_size_px=32, num_images=1, repeats=1
    )
    (row,) = run(settings)
    assert "speedup" not in row
    with pytest.raises(ValueError, match="unknown case 'theirs', expected some of plain-fp32"):
        run(Settings(cases=("theirs",)))


def test_the_plain_case_is_the_network_itself():
    torch.manual_seed(0)
    stack = TransformerConfig(width=64, depth=2, heads=2, mlp_width=64)
    network = ViTVQGAN(ViTVQGANConfig(encoder=stack, decoder=None, num_codes=50)).eval()
    pixels = photographs(Settings(image_size_px=32, num_images=2))
    assert 0 <= pixels.min() < pixels.max() <= 1
    with torch.no_grad():
        _, ids, _ = network.vector_quantizer()(network.encoder(pixels))
        assert torch.equal(plain_units(network, pixels).flatten(1), ids)
