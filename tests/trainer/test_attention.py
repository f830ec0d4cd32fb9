import pytest
import torch
import torch.nn.functional as F

from im2sp.trainer.attention import attention, dropout


def make_inputs(dtype):
    torch.manual_seed(0)
    sizes = {"q": 5, "k": 9, "v": 9}
    return [
        torch.randn(2, length, 3, 8, dtype=dtype).transpose(1, 2).requires_grad_()
        for length in sizes.values()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_torchs_attention(dtype, masked):
    inputs = make_inputs(dtype)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4) if masked else None
    expected = F.scaled_dot_product_attention(*[x.float() for x in inputs], mask)
    found = attention(*inputs, mask, 0.0)
    assert found.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-6 if dtype == torch.float32 else 0.03}
    torch.testing.assert_close(found.float(), expected, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(attention(*inputs, mask, 0.0).float(), expected, **tolerance)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    gradients = torch.autograd.grad(found, inputs, gradient.to(dtype))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one.float(), other.float(), **tolerance)


def test_dropout_of_attention_weights():
    q, k, _ = make_inputs(torch.float32)
    ones = torch.ones(2, 3, 9, 8)
    torch.manual_seed(1)
    kept = torch.stack([attention(q, k, ones, None, 0.25) for _ in range(400)])
    assert kept.std() > 0.1
    assert abs(kept.mean().item() - 1) < 0.01


def test_dropout_keeps_the_mean_and_drops_its_share():
    torch.manual_seed(2)
    x = torch.ones(1001, 999, requires_grad=True)
    y = dropout(x, 0.1)
    values = y.unique().tolist()
    assert values[0] == 0
    assert values[1:] == pytest.approx([1 / 0.9], rel=1e-4)
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    columns = (y == 0).float().mean(0)
    assert 0.03 < columns.min() < columns.max() < 0.17


def test_dropout_follows_the_seed_and_the_type():
    x = torch.ones(7, 3, dtype=torch.bfloat16)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(dropout(x, 0.5))
    assert torch.equal(*drawn)
    assert drawn[0].dtype == torch.bfloat16
    assert not torch.equal(drawn[0], dropout(x, 0.5))
    assert dropout(x, 0.0) is x
    assert dropout(x[:0], 0.5).shape == (0, 3)
