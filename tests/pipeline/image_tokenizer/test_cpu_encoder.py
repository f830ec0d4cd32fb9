import pytest
import torch
import torch.nn.functional as F

from im2sp.pipeline.image_tokenizer.cpu_encoder import CodeSearch, PackedEncoder, argmax_rows
from im2sp.pipeline.image_tokenizer.network import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.onednn import is_supported, packed_attention

needs_packing = pytest.mark.skipif(not is_supported(torch.float32), reason="torch lacks oneDNN")
needs_bfloat16 = pytest.mark.skipif(
    not is_supported(torch.bfloat16), reason="no bfloat16 in oneDNN on this CPU"
)


def make_network(heads=2, width=64, head_width=64):
    torch.manual_seed(3)
    stack = TransformerConfig(
        width=width, depth=2, heads=heads, mlp_width=96, head_width=head_width
    )
    config = ViTVQGANConfig(encoder=stack, decoder=None, num_codes=200)
    return ViTVQGAN(config, (4, 4)).eval().requires_grad_(False)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@needs_packing
@pytest.mark.parametrize(("heads", "width", "head_width"), [(2, 64, 64), (1, 64, 64), (4, 32, 24)])
def test_float32_is_the_module_up_to_rounding(heads, width, head_width):
    network = make_network(heads, width, head_width)
    pixels = random(3, 3, 32, 40).sigmoid()
    packed = PackedEncoder(network, torch.float32)
    torch.testing.assert_close(
        packed(pixels), network.encode_features(pixels), atol=1e-5, rtol=1e-5
    )


@needs_bfloat16
@pytest.mark.parametrize(("heads", "width", "head_width"), [(2, 64, 64), (1, 64, 64), (4, 32, 24)])
def test_bfloat16_is_close(heads, width, head_width):
    network = make_network(heads, width, head_width)
    pixels = random(2, 3, 32, 32).sigmoid()
    packed = PackedEncoder(network, torch.bfloat16)(pixels)
    exact = network.encode_features(pixels)
    assert packed.dtype == torch.float32
    assert F.cosine_similarity(packed, exact, dim=-1).min() > 0.998


def exact_attention(qkv):
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4).unbind(0)
    return (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).flatten(2)


@needs_bfloat16
@pytest.mark.parametrize("size", [1.0, 6.0, 300.0])
def test_bfloat16_attention_whether_or_not_scores_are_bounded(size):
    """At 300 the scores would overflow exp() without their maximum taken off."""
    qkv = random(2, 50, 3, 3, 64)
    qkv[:, :, :2] *= (size / 8) ** 0.5
    qkv = qkv.bfloat16()
    mixed = packed_attention(qkv)
    assert torch.isfinite(mixed).all()
    # bfloat16 scores of hundreds are whole numbers, so weights may differ by a factor there.
    share = ((mixed - exact_attention(qkv)).abs() < 0.1).float().mean()
    assert share > (0.999 if size < 100 else 0.9)


@needs_packing
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_float32_attention(size):
    qkv = random(2, 50, 3, 3, 24)
    qkv[:, :, :2] *= (size / 8) ** 0.5
    torch.testing.assert_close(
        packed_attention(qkv).double(), exact_attention(qkv), atol=2e-4, rtol=1e-4
    )


@needs_packing
def test_an_image_does_not_depend_on_its_batch():
    packed = PackedEncoder(make_network(), torch.float32)
    pixels = random(4, 3, 32, 32).sigmoid()
    one_by_one = torch.cat([packed(image[None]) for image in pixels])
    torch.testing.assert_close(packed(pixels), one_by_one, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("num_codes", "num_features"), [(8192, 500), (391, 197), (5, 1)])
def test_code_search_equals_the_library(num_codes, num_features):
    network = make_network()
    network.quantizer.embedding = torch.nn.Embedding(num_codes, 32).requires_grad_(False)
    network.config = ViTVQGANConfig(
        encoder=network.config.encoder, decoder=None, num_codes=num_codes
    )
    quantizer = network.vector_quantizer()
    quantizer.project_in = torch.nn.Identity()
    features = random(1, num_features, 32)
    _, expected, _ = quantizer(features)
    found = CodeSearch(quantizer.codebook)(F.normalize(features[0], dim=-1))
    assert torch.equal(found, expected[0])


def test_of_equal_codes_the_first_is_taken():
    codes = F.normalize(torch.ones(64, 32), dim=-1)
    assert CodeSearch(codes)(F.normalize(random(9, 32), dim=-1)).tolist() == [0] * 9


@pytest.mark.parametrize("num_codes", [8192, 512, 391, 1])
def test_argmax_rows_is_argmax_also_where_maxima_repeat(num_codes):
    values = (random(50, num_codes) * 3).round()
    assert torch.equal(argmax_rows(values), values.argmax(-1))
