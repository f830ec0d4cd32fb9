"""Settings and fixtures that tests of several folders use."""

import os
import signal
import sys
from pathlib import Path

import pytest

# One thread for torch: more spin against each other on models this small. Set before torch is
# imported, so that tests without it need not import it; tests of threads set their own number.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell's background job ignores interrupts, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Skip the tests marked `cuda` where there is no GPU, and `ray` and `s3` unless asked for."""
    for name, what in (("ray", "Ray"), ("s3", "moto")):
        for item in items if name not in config.option.markexpr else ():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"starts {what}; give -m {name}"))
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Run tests on the CPU, also where there is a GPU, except those marked `cuda`."""
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("cuda"):
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for programs that a test starts
            if "torch" in sys.modules:
                patch.setattr("torch.cuda.is_available", lambda: False)
        return (yield)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The pack of real test data, which stands beside the checkout and not in it."""
    path = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the shared test data (../shared/data) is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def s3_port():
    """Port of an S3 store on loopback, which the tests share."""
    from support.moto import s3_server

    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(s3_port, monkeypatch):
    """A new bucket (`support.moto.Bucket`); the environment says where its store is."""
    from support.moto import s3_bucket

    with s3_bucket(s3_port, monkeypatch) as made:
        yield made


@pytest.fixture
def float32_backends():
    """Torch's settings of float32 products and convolutions on a GPU; restored after the test."""
    import torch

    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    yield backends
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value
