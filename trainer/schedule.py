"""The learning rate: a linear rise, then a cosine to 0."""

import math


def rate_factor(step: int, *, warmup_steps: int, schedule_steps: int) -> float:
    """Share of the highest rate that a step takes.

    Args:
        step: Number of the step, from 0.
        warmup_steps: Steps of the rise; the last of them has the whole rate.
        schedule_steps: Step that would have the rate 0; the rise is never cut short for it.

    >>> [rate_factor(s, warmup_steps=2, schedule_steps=4) for s in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= schedule_steps:
        return 0.0
    progress = (step - warmup_steps) / (schedule_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
