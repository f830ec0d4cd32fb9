"""Models that are small enough for tests."""

import dataclasses

import pytest
import torch

from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import ModelConfig, StackConfig
from im2sp.trainer.vocabulary import Vocabulary


def _make_model(seed=0, **changes):
    """A random model in eval mode; its weights are so large that outputs depend on the inputs."""
    stack = StackConfig(width=32, depth=2, heads=2, mlp_width=48)
    config = ModelConfig(
        vocabulary=Vocabulary(kind="speech", num_ids=40),
        encoder=dataclasses.replace(stack, width=48, heads=3),
        decoder=dataclasses.replace(stack, depth=3),
        num_codes=50,
        code_width=8,
        max_positions=40,
    )
    config = dataclasses.replace(config, **changes)
    torch.manual_seed(seed)
    model = Im2SpModel(config, torch.randn(config.num_codes, config.code_width))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def make_model():
    """make_model(seed=0, **changes of the configuration) -> Im2SpModel."""
    return _make_model


@pytest.fixture(scope="session")
def make_batch():
    """make_batch(model, num_images=3, num_texts=7, seed=1) -> image units, tokens, owner."""

    def make(model, num_images=3, num_texts=7, seed=1):
        config, vocabulary = model.config, model.config.vocabulary
        generator = torch.Generator().manual_seed(seed)
        size = (num_images, *config.shape)
        image_units = torch.randint(0, config.num_codes, size, generator=generator)
        lengths = torch.randint(1, 12, (num_texts,), generator=generator)
        ids = torch.randint(0, vocabulary.num_ids, (num_texts, 12), generator=generator)
        owner = torch.randint(0, num_images, (num_texts,), generator=generator)
        return image_units, vocabulary.encode_batch(ids, lengths), owner

    return make
