import pytest
import torch
from torch import nn

from im2sp.trainer.packed import packed_linears


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 8, bias=False))


def test_results_are_the_same():
    model, x = network(), torch.randn(5, 7, 48)
    with torch.no_grad():
        expected = model(x)
        with packed_linears(model):
            assert all("forward" in module.__dict__ for module in (model[0], model[2]))
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(x), expected, atol=0, rtol=0)


def test_the_model_is_restored_also_after_an_error():
    model = network()
    with pytest.raises(RuntimeError, match="on purpose"), packed_linears(model):
        raise RuntimeError("on purpose")
    assert not any("forward" in module.__dict__ for module in model.modules())
    model(torch.randn(1, 48)).sum().backward()
    assert model[0].weight.grad is not None


def test_other_dtypes_stay_with_torch():
    model = network().double()
    with torch.no_grad(), packed_linears(model):
        assert model(torch.randn(1, 48, dtype=torch.double)).dtype == torch.double


def test_changed_weights_are_seen():
    model, x = network(), torch.randn(3, 48)
    with torch.no_grad():
        for change in (lambda: None, lambda: model[0].weight.mul_(2), lambda: None):
            change()
            expected = model(x)
            with packed_linears(model):
                torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        model[0].weight = nn.Parameter(torch.randn(64, 48))
        expected = model(x)
        with packed_linears(model):
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
