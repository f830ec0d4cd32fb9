import numpy as np
import pytest
import torch

from im2sp.tools.fitting.hubert_trainer import Crops, MaskedPredictor, Recipe, Trainer, draw_mask
from im2sp.tools.fitting.speech_corpus import Manner, make_corpus
from im2sp.tools.fitting.speech_targets import hubert_features, hubert_weights, measure_voices
from support.speech import install_flite

RECIPE = Recipe(
    width=64, num_layers=2, conv_width=16, position_kernel=16, batch_size=2, crop_frames=20
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("corpus")
        install_flite(folder / "bin", monkeypatch)
        manners = [Manner(voice="slt")] * 3
        recordings = [("a.wav", np.full(4000, 0.1, np.float32))]
        return make_corpus(folder / "c", ["one", "two", "red"], manners, recordings, quiet=True)


@pytest.fixture(scope="module")
def crops(corpus):
    num_frames = sum(clip.num_frames for clip in corpus.clips)
    return Crops(corpus, np.arange(num_frames) % 7, RECIPE)


def test_the_wide_convolution_is_torchs():
    model = MaskedPredictor(RECIPE, 5)
    convolution = model.hubert.encoder.pos_conv_embed.conv
    x = torch.randn(2, 64, 33)
    torch.testing.assert_close(
        convolution(x), type(convolution).forward(convolution, x), atol=1e-5, rtol=1e-5
    )


def test_features_of_the_trained_model_are_those_tokenizers_see():
    model = MaskedPredictor(RECIPE, 5).eval()
    samples = torch.randn(4000)
    features = hubert_features(hubert_weights(model, 2), CPU, torch.float32)(samples)
    with torch.no_grad():
        expected = model.hubert(samples[None]).last_hidden_state[0]
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-3)


def test_masks_have_some_of_each():
    generator = torch.Generator().manual_seed(0)
    is_hidden = draw_mask((64, 50), 0.08, generator)
    assert 0.3 < is_hidden.float().mean() < 0.7
    for share in (0.0, 1.0):
        is_hidden = draw_mask((4, 20), share, generator)
        assert is_hidden.any(1).all()
        assert not is_hidden.all(1).any()


def test_crops_hold_the_samples_that_their_targets_belong_to(corpus):
    # Each frame's target is its place in the corpus, so the clip can be found again.
    places = np.arange(sum(clip.num_frames for clip in corpus.clips))
    crops = Crops(corpus, places, RECIPE)
    clips, targets = crops.draw(np.random.default_rng(0))
    assert clips.shape == (2, 20 * 320 + 80)
    owner = np.repeat(np.arange(len(corpus)), [clip.num_frames for clip in corpus.clips])
    for row, frames in zip(clips.numpy(), targets.numpy(), strict=True):
        for at, place in enumerate(frames):
            number = owner[place]
            first = (place - corpus.clips[number].first_frame) * 320
            expected = corpus.waveform(number)[first : first + 320]
            np.testing.assert_array_equal(row[at * 320 : at * 320 + 320], expected)


def steps(trainer, crops, numbers):
    return [
        trainer.train_step(*crops.draw(np.random.default_rng(number)), 0.1)["loss"]
        for number in numbers
    ]


def test_three_steps_and_three_more_are_six(crops):
    whole = steps(Trainer(RECIPE, 7, CPU), crops, range(6))
    first, second = Trainer(RECIPE, 7, CPU), Trainer(RECIPE, 7, CPU)
    begin = steps(first, crops, range(3))
    second.restore(first.state())
    assert begin + steps(second, crops, range(3, 6)) == whole


def test_it_learns(corpus, crops):
    # What is heard tells the target: silence or not.
    labels = np.concatenate([corpus.labels(number) for number in range(len(corpus))])
    trainer = Trainer(RECIPE, 2, CPU)
    losses = steps(trainer, Crops(corpus, (labels == 0).astype(int), RECIPE), range(100))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_a_loss_that_is_no_number_is_told(crops):
    trainer = Trainer(RECIPE, 7, CPU)
    clips, targets = crops.draw(np.random.default_rng(0))
    clips[0, 0] = torch.nan
    with pytest.raises(ValueError, match="loss is nan at step 0; lower the learning rate"):
        trainer.train_step(clips, targets, 0.0)


def test_figures_of_voices():
    a, b = np.array([1, 1, 2, 3]), np.array([7, 8, 8, 9])
    figures = measure_voices([a, a, b, b], num_voices=2)
    assert (figures.same_text, figures.same_voice, figures.share_closer) == (0.0, 1.0, 1.0)
