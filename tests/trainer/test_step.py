import pytest

from im2sp.trainer.step import rate_factor


def test_warmup_and_cosine():
    rates = [rate_factor(step, warmup_steps=4, schedule_steps=12) for step in range(14)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[12:] == [0.0, 0.0]


def test_a_warmup_longer_than_the_run_and_none_at_all():
    assert rate_factor(5, warmup_steps=10_000, schedule_steps=6) == 6 / 10_000
    assert rate_factor(0, warmup_steps=0, schedule_steps=6) == 1
