import numpy as np
import pytest
import torch
from torch.nn import functional as F

from im2sp.pipeline.vocoder.vocoder import Vocoder, load_vocoder
from im2sp.tools.fitting.vocoder_network import Durations, Generator, NetworkSizes
from support.vocoder import plain_durations, plain_samples, save_published

SIZES = NetworkSizes(num_units=9, width=8, channels=32, block_kernels=(3, 5), dilations=(1, 2, 3))


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    made = Generator(SIZES).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("weight_g"):
                parameter.mul_(1 + torch.rand(parameter.shape)).clamp_min_(0.4)
            elif name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return made


def test_it_is_the_published_generator(generator, tmp_path):
    units = torch.tensor([3, 3, 1, 8, 0, 2, 2, 2, 5])
    config, state = SIZES.as_published(), generator.state_dict()
    expected = plain_samples(config, state, units)
    assert expected.std() > 1e-3
    with torch.no_grad():
        made = generator(units[None])[0]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    loaded = load_vocoder(save_published(tmp_path / "v", config, state), device="cpu")
    samples = loaded.synthesize(units, np.ones(9, int))
    np.testing.assert_allclose(samples, expected, atol=2e-5)
    ours = Vocoder(generator.weights(), name="ours", device="cpu")
    assert ours.fingerprint == loaded.fingerprint


def test_durations_are_those_that_are_told(generator):
    units = torch.tensor([[3, 1, 8, 0, 2, 5], [4, 1, 0, 0, 0, 0]])
    is_inside = torch.tensor([[True] * 6, [True, True, False, False, False, False]])
    state = generator.state_dict()
    with torch.no_grad():
        told = generator.dur_predictor(generator.dict(units), is_inside)
    frames = (told.exp() - 1).round().clamp_min(1).long()
    assert frames[0].tolist() == plain_durations(state, units[0]).tolist()
    assert frames[1, :2].tolist() == plain_durations(state, units[1, :2]).tolist()
    wanted = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]])
    with torch.no_grad():
        loss = generator.duration_loss(units, wanted)
    pairs = torch.cat([told[0], told[1, :2]]), torch.arange(1, 9)
    torch.testing.assert_close(loss, F.mse_loss(pairs[0], (pairs[1] + 1.0).log()))


def test_durations_drop_out_in_training():
    torch.manual_seed(0)
    predictor = Durations(8).train()
    x, is_inside = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    assert not torch.equal(predictor(x, is_inside), predictor(x, is_inside))


def test_the_compact_sizes_fit_in_eight_megabytes():
    generator = Generator(NetworkSizes())
    num_values = sum(tensor.numel() for tensor in generator.weights().tensors.values())
    assert 2 * num_values < 7.5e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_rates": (5, 8, 8)}, "3 upsampling rates and 4 kernels, expected equal"),
        ({"channels": 40}, "40 channels cannot be halved 4 times"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        NetworkSizes(**changes)


def test_rates_that_make_no_frame():
    with pytest.raises(ValueError, match="give 640 samples per unit, expected 320"):
        _ = NetworkSizes(upsample_rates=(10, 4, 4, 4), upsample_kernels=(20, 8, 8, 8)).settings
