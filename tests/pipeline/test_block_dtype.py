"""Reduced precision of the blocks must not affect the distances of codes."""

import torch
import torch.nn.functional as F

from im2sp.pipeline.image_tokenizer.cpu_encoder import PackedEncoder
from im2sp.pipeline.image_tokenizer.network import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.onednn import is_supported


def test_bfloat16_blocks_that_add_nothing_leave_features_exact():
    torch.manual_seed(0)
    stack = TransformerConfig(width=64, depth=2, heads=1, mlp_width=96, head_width=32)
    network = ViTVQGAN(ViTVQGANConfig(encoder=stack, decoder=stack), (4, 4))
    network.eval().requires_grad_(False)
    for part in (network.encoder, network.decoder):
        for attention, mlp in part.transformer.layers:
            for linear in (attention.fn.to_out, mlp.fn.net[2]):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)
    pixels = torch.rand(2, 3, 32, 32)
    exact = network.encode_features(pixels)
    reduced = network.encode_features(pixels, block_dtype=torch.bfloat16)
    assert torch.equal(exact, reduced)
    if is_supported(torch.bfloat16):
        packed = PackedEncoder(network, torch.bfloat16)(pixels)
        torch.testing.assert_close(packed, exact, atol=1e-5, rtol=1e-5)
    codes = F.normalize(torch.randn(2, 16, 32), dim=-1)
    decoded = network.decode_features(codes, block_dtype=torch.bfloat16)
    assert torch.equal(decoded, network.decode_features(codes))
