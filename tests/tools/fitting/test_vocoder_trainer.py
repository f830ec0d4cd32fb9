import copy

import pytest
import torch

from im2sp.tools.fitting.vocoder_network import NetworkSizes
from im2sp.tools.fitting.vocoder_trainer import Batch, Recipe, Trainer

SIZES = NetworkSizes(num_units=6, width=8, channels=32, block_kernels=(3,), dilations=(1, 2, 3))
RECIPE = Recipe(
    batch_size=2,
    segment_frames=5,
    rate=3e-3,
    discriminator_width=1 / 32,
    num_scales=1,
    mel_windows=(512, 256),
)
CPU = torch.device("cpu")


def make_batch(seed=0):
    random = torch.Generator().manual_seed(seed)
    units = torch.randint(6, (2, 5), generator=random)
    times = torch.arange(1600) / 16_000
    samples = torch.stack([0.5 * torch.sin(2 * torch.pi * hz * times) for hz in (200, 500)])
    collapsed = torch.randint(6, (2, 4), generator=random)
    return Batch(
        units=units,
        samples=samples,
        collapsed=collapsed,
        durations=torch.tensor([[1, 2, 3, 4], [5, 1, 0, 0]]),
    )


def duration_loss(trainer):
    """Without the dropout of training."""
    trainer.generator.eval()
    with torch.no_grad():
        loss = trainer.generator.duration_loss(make_batch().collapsed, make_batch().durations)
    trainer.generator.train()
    return loss.item()


def test_training_lowers_all_losses():
    trainer = Trainer(RECIPE, SIZES, CPU)
    with torch.no_grad():  # so small a network starts out silent, where the logarithm is cut
        for name, parameter in trainer.generator.named_parameters():
            if name.endswith("weight_g"):
                parameter.clamp_min_(0.5)
    before = duration_loss(trainer)
    losses = [trainer.train_step(make_batch(), 0.0) for _ in range(25)]
    assert set(losses[0]) == {"mel", "durations"}
    assert losses[-1]["mel"] < 0.8 * losses[0]["mel"]
    assert duration_loss(trainer) < 0.7 * before


def test_adversaries_come_in_later():
    trainer = Trainer(RECIPE, SIZES, CPU)
    before = copy.deepcopy(trainer.discriminators.state_dict())
    trainer.train_step(make_batch(), 0.39)
    for name, tensor in trainer.discriminators.state_dict().items():
        assert torch.equal(tensor, before[name])
    losses = [trainer.train_step(make_batch(), 0.4) for _ in range(8)]
    assert {"judged", "adversarial", "features"} < set(losses[0])
    assert losses[-1]["judged"] < losses[0]["judged"]
    start = Trainer(Recipe(**{**vars_of(RECIPE), "adversary_from": 0.0}), SIZES, CPU)
    assert "judged" in start.train_step(make_batch(), 0.0)


def vars_of(recipe):
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}


def test_rates_warm_up_and_fall():
    trainer = Trainer(RECIPE, SIZES, CPU)

    def rates(progress):
        trainer.train_step(make_batch(), progress)
        return [one.param_groups[0]["lr"] for one in (trainer.optimizer, trainer.adversary)]

    assert rates(0.0)[0] == pytest.approx(3e-3 / 100)
    trainer.step = 1000
    assert rates(0.0) == pytest.approx([3e-3, 4e-4])
    assert rates(1.0) == pytest.approx([3e-3 * 0.1 * 0.5, 4e-5])


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_three_steps_a_restart_and_three_more_are_six(progress):
    whole = Trainer(RECIPE, SIZES, CPU)
    expected = [whole.train_step(make_batch(step), progress) for step in range(6)]
    first = Trainer(RECIPE, SIZES, CPU)
    for step in range(3):
        first.train_step(make_batch(step), progress)
    state = copy.deepcopy(first.state())
    torch.manual_seed(77)
    second = Trainer(RECIPE, SIZES, CPU)
    second.restore(state)
    assert [second.train_step(make_batch(step), progress) for step in (3, 4, 5)] == expected[3:]
    for name, tensor in whole.average.items():
        assert torch.equal(tensor, second.average[name])


def test_the_average_follows_the_weights():
    trainer = Trainer(RECIPE, SIZES, CPU)
    trainer.train_step(make_batch(), 0.0)
    name = "conv_pre.weight_v"
    state = trainer.generator.state_dict()[name]
    trainer.average[name].zero_()
    trainer.step = 100_000
    trainer._follow()
    torch.testing.assert_close(trainer.average[name], 0.001 * state)


def test_a_loss_that_is_not_finite_stops_with_the_step():
    trainer = Trainer(RECIPE, SIZES, CPU)
    with torch.no_grad():
        trainer.generator.conv_post.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="nan at step 0; lower the learning rates"):
        trainer.train_step(make_batch(), 0.0)
