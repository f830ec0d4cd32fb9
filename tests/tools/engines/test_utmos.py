"""UTMOS in its published form, against transformers' wav2vec 2.0 and torch's layers."""

import numpy as np
import pytest
import torch
from torch import nn

from im2sp.tools.engines import utmos
from im2sp.tools.engines.mos import load_predictor
from im2sp.tools.engines.utmos import FILE_NAME, Utmos
from support.hubert import CONVOLUTIONS, TO_FAIRSEQ, clip, fairseq_tensors


class Reference(nn.Module):
    """UTMOS as published: features, embeddings, LSTM, mean of the frames."""

    def __init__(self):
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        super().__init__()
        torch.manual_seed(0)
        self.wav2vec2 = Wav2Vec2Model(
            Wav2Vec2Config(
                **CONVOLUTIONS, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=48, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
            )
        )  # fmt: skip
        self.domain_emb = nn.Parameter(torch.randn(1, 6))
        self.judge_emb = nn.Parameter(torch.randn(1, 5))
        self.blstm = nn.LSTM(128 + 11, 12, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 1))
        self.eval()

    @torch.no_grad()
    def forward(self, samples):
        features = self.wav2vec2(torch.from_numpy(samples)[None]).last_hidden_state
        extra = torch.cat((self.domain_emb, self.judge_emb), 1)[:, None]
        x = torch.cat((features, extra.expand(-1, features.shape[1], -1)), 2)
        return self.projection(self.blstm(x)[0]).mean().item() * 2 + 3


def state_of(reference):
    """Its state dict under the published names."""
    assert TO_FAIRSEQ
    own = {n: t for n, t in reference.state_dict().items() if not n.startswith("wav2vec2.")}
    encoder = fairseq_tensors(reference.wav2vec2)
    for name in ("label_embs_concat", "final_proj.weight"):
        del encoder[name]
    return own | {f"wav2vec2.{name}": tensor for name, tensor in encoder.items()}


@pytest.fixture(scope="module")
def reference():
    return Reference()


@pytest.fixture
def folder(reference, tmp_path):
    torch.save(state_of(reference), tmp_path / FILE_NAME)
    return tmp_path


def test_scores_are_those_of_the_reference(reference, folder):
    model = load_predictor(str(folder), "cpu")
    for num_samples in (400, 16_000, 23_001):
        samples = clip(num_samples)
        found = model.score(samples)
        assert found == {"UTMOS": pytest.approx(reference(samples), abs=1e-4)}
    short = np.pad(clip(300), (0, 100))
    assert model.score(clip(300))["UTMOS"] == pytest.approx(reference(short), abs=1e-4)
    assert Utmos(str(folder / FILE_NAME), "cpu").fingerprint == model.fingerprint
    with pytest.raises(ValueError, match="UTMOS of a clip without samples"):
        model.score(np.zeros(0, np.float32))


def test_the_name_is_a_file_of_torch_hub(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def download(url, path, progress):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match=r"utmos22_strong: cannot be downloaded \(no network\); c"):
        load_predictor("utmos22_strong", "cpu")
    state = state_of(reference)
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, path, progress: torch.save(state, path)
    )
    assert load_predictor("utmos22_strong", "cpu").name == "UTMOS"
    assert (tmp_path / "checkpoints" / FILE_NAME).is_file()
    assert utmos._RELEASE.endswith("/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("domain_emb"), "not a UTMOS; expected utmos22_strong_step7459"),
        (lambda state: state.pop("blstm.weight_hh_l0"), "lacks blstm.weight_hh_l0 or proj"),
        (lambda state: state.pop("blstm.bias_ih_l0"), "not the shapes of a UTMOS: .*bias_ih_l0"),
        (
            lambda state: state.update({"projection.2.weight": torch.zeros(1, 3)}),
            r"not the shapes of a UTMOS: .*projection\.2\.weight",
        ),
        (
            lambda state: state.pop("wav2vec2.encoder.layers.1.fc1.weight"),
            "lacks .*layers.1.feed_forward.intermediate_dense.weight",
        ),
    ],
)
def test_other_forms_are_refused(reference, tmp_path, change, message):
    state = state_of(reference)
    change(state)
    torch.save(state, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Utmos(str(tmp_path), "cpu")


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=f"lacks {FILE_NAME}"):
        Utmos(str(tmp_path), "cpu")
    with pytest.raises(ValueError, match="there is no such file"):
        Utmos(str(tmp_path / "none.pt"), "cpu")
