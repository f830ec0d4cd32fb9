"""Exponential moving average of weights."""

import copy

from torch.optim.swa_utils import get_ema_multi_avg_fn

from im2sp.trainer.model import Im2SpModel


class Average:
    """Average of a model's weights over the steps of a run, a model itself.

    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992). In the
    first steps the decay is smaller, so that the initial weights are forgotten.

    Attributes:
        model: Model with the averaged weights, not trained.
    """

    def __init__(self, model: Im2SpModel, decay: float) -> None:
        """Start at the weights of `model`; `decay` in (0, 1) is the weight of the past per step."""
        self._decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    def update(self, model: Im2SpModel, step: int) -> None:
        """Add the weights behind step `step`, counted from 0."""
        update = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
        update(list(self.model.parameters()), list(model.parameters()), step)
