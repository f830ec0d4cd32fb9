import os

import pytest
import torch

from im2sp.trainer import ranks


@pytest.mark.parametrize(
    ("name", "local_rank", "chosen"),
    [(None, 0, "cuda:0"), ("cuda", 0, "cuda:0"), ("cuda", 3, "cuda:3"), ("cuda:1", 0, "cuda:1")],
)
def test_a_gpu_has_an_index(monkeypatch, name, local_rank, chosen):
    found = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert ranks._device(name, local_rank) == torch.device(chosen)
    assert found == [torch.device(chosen)]


@pytest.mark.parametrize(("enabled", "value"), [(True, "tf32"), (False, "ieee")])
def test_tf32_on_a_gpu_is_as_asked(float32_backends, enabled, value):
    ranks.use_tf32(enabled, torch.device("cuda"))
    assert [backend.fp32_precision for backend in float32_backends] == [value, value]


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="--precision tf32 needs a CUDA device, found cpu"):
        ranks.use_tf32(True, torch.device("cpu"))


def test_the_end_of_another_process_is_one_line(monkeypatch):
    def lost(_):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lost)
    with (
        pytest.raises(ValueError, match="another process of this run ended; see its message"),
        ranks.init_distributed("cpu"),
    ):
        pass


def test_a_test_without_the_mark_cuda_runs_on_the_cpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    with ranks.init_distributed(None) as found:
        assert found.device == torch.device("cpu")
