import pytest
import torch

from im2sp.tools.engines.git_reference import git_from, git_generate
from im2sp.trainer import generate
from im2sp.trainer.generation import kept_logits

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def units(make_model, make_batch):
    return make_batch(make_model(), num_images=4)[0]


def eos_model(make_model, bias, **changes):
    """A model that ends its texts after some steps."""
    model = make_model(**changes)
    with torch.no_grad():
        model.decoder.output_bias[EOS] += bias
        model.decoder.positions.weight.mul_(6)  # so that texts do not repeat one token
    return model


def reference_ids(model, units, num_beams, max_tokens):
    rows = git_generate(git_from(model), units, num_beams, max_tokens)
    return [model.config.vocabulary.decode(row) for row in rows]


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("bias", [-100.0, 0.0, 1.5])
def test_equal_to_transformers(make_model, units, num_beams, bias):
    model = eos_model(make_model, bias)
    found = generate(model, units, num_beams, max_tokens=14)
    assert found == reference_ids(model, units, num_beams, 14)
    if bias < 0:
        assert len({unit for ids in found for unit in ids}) > 8
    else:
        assert min(map(len, found)) < 12  # some text has ended by itself


@pytest.mark.parametrize(("num_beams", "bias"), [(1, 1.0), (5, 1.0), (5, -100.0)])
def test_a_batch_equals_single_images(make_model, units, num_beams, bias):
    model = eos_model(make_model, bias)
    together = generate(model, units, num_beams, max_tokens=12)
    alone = [generate(model, unit[None], num_beams, max_tokens=12)[0] for unit in units]
    assert together == alone


def without_cache(model, units, max_tokens):
    """Naive greedy decoding: a full forward pass for each token."""
    tokens = torch.full((len(units), 1), BOS)
    for _ in range(max_tokens):
        following = model(units, tokens)[:, -1].argmax(-1)
        tokens = torch.cat((tokens, following[:, None]), 1)
    return [model.config.vocabulary.decode(row) for row in tokens.tolist()]


def test_the_cache_changes_nothing(make_model, units):
    model = eos_model(make_model, 0.5)
    assert generate(model, units, max_tokens=20) == without_cache(model, units, 20)


def test_max_tokens_counts_eos_and_not_bos(make_model, units):
    never, at_once = eos_model(make_model, -1e4), eos_model(make_model, 1e4)
    with torch.no_grad():
        never.decoder.output_bias[:2] -= 1e4  # nor PAD or BOS
    for num_beams in (1, 3):
        assert [len(ids) for ids in generate(never, units, num_beams, max_tokens=7)] == [7] * 4
        assert [len(ids) for ids in generate(never, units, num_beams, max_tokens=40)] == [40] * 4
        assert generate(at_once, units, num_beams, max_tokens=1) == [[]] * 4


def test_length_penalty_and_patience_change_the_choice(make_model, units):
    model = eos_model(make_model, 1.5)
    short = generate(model, units, 4, 14, length_penalty=-3.0, early_stopping=False)
    long = generate(model, units, 4, 14, length_penalty=5.0, early_stopping=False)
    assert sum(map(len, short)) < sum(map(len, long))


def test_sampling_is_seeded_and_near_greedy_when_cold(make_model, units):
    model = eos_model(make_model, 0.5)
    first = generate(model, units, max_tokens=14, temperature=1.5, seed=3)
    assert generate(model, units, max_tokens=14, temperature=1.5, seed=3) == first
    assert generate(model, units, max_tokens=14, temperature=1.5, seed=4) != first
    greedy = generate(model, units, max_tokens=14)
    assert first != greedy
    for options in ({"temperature": 1e-4}, {"temperature": 2.0, "top_k": 1}):
        assert generate(model, units, max_tokens=14, **options) == greedy
    assert generate(model, units, max_tokens=14, temperature=2.0, top_p=1e-6) == greedy


def test_kept_logits():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]]).log()

    def kept(**options):
        options = {"top_k": None, "top_p": None} | options
        return kept_logits(logits, **options).isfinite().tolist()

    every = [True] * 4
    assert kept() == [every, every]
    assert kept(top_k=2)[0] == [False, True, False, True]
    assert kept(top_k=9) == [every, every]
    assert kept(top_p=0.65) == [[False, True, False, True], [True, False, False, False]]
    assert kept(top_p=0.75)[0] == [False, True, True, True]
    assert kept(top_p=1.0) == [every, every]


def test_the_model_is_left_in_its_mode(make_model, units):
    model = make_model().train()
    expected = generate(model, units, max_tokens=5)
    assert model.training
    assert generate(model.eval(), units, max_tokens=5) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 41}, "max_tokens is 41, expected 1 to 40"),
        ({"max_tokens": 0}, "max_tokens is 0, expected 1 to 40"),
        ({"num_beams": 0}, "num_beams is 0, expected at least 1"),
        ({"top_k": 3}, "top_k and top_p apply to sampling only; also give a temp"),
        ({"temperature": 1.0, "num_beams": 2}, "a temperature and 2 beams"),
        ({"temperature": 0.0}, "temperature is 0.0, expected above 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0, expected at least 1"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p is 1.5, expected \(0, 1\]"),
    ],
)
def test_invalid_options_are_refused(make_model, units, options, message):
    with pytest.raises(ValueError, match=message):
        generate(make_model(), units, **{"max_tokens": 5} | options)


def test_generates_under_autocast(make_model, units):
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, units, max_tokens=5)
    assert [len(ids) <= 5 for ids in found] == [True] * len(units)
