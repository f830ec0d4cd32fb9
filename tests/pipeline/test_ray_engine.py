"""`im2sp-tokenize --engine ray`; the tests that are marked start a real Ray on this machine."""

import os
import re
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest

from im2sp.pipeline import ray_engine
from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job.config import JobError
from im2sp.pipeline.job.inputs import ListedChunk
from im2sp.pipeline.job.plan import list_inputs
from im2sp.pipeline.job.run import JobConfig, run_job
from im2sp.pipeline.ray_engine import RayCluster, Worker
from im2sp.shards import Manifest

# Runs the command with chunks of 8 inputs; the first argument is code to run before.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from im2sp.pipeline import cli, ray_engine
from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job.publish import Publisher

def worker_pid():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        environ = path.with_name("environ")
        try:
            if path.read_bytes().startswith(b"ray::Worker") and TOKEN in environ.read_bytes():
                return int(path.parent.name)
        except OSError:
            pass
    raise AssertionError("no worker")

def after(num_chunks, do):
    calls, advance = iter(range(99)), Publisher.advance
    def call(self, chunk=None):
        advance(self, chunk)
        if next(calls) == num_chunks:
            do()
    Publisher.advance = call

if __name__ == "__main__":
    job_config.CHUNK_SIZE = 8
    os.environ["RAY_AUTH_TOKEN"] = "%032x" % os.getpid() * 2
    TOKEN = os.environ["RAY_AUTH_TOKEN"].encode()
    exec(sys.argv.pop(1))
    cli.main()
"""


@pytest.fixture(scope="module")
def pictures(draw, tmp_path_factory):
    return draw(tmp_path_factory.mktemp("ray") / "p", 60, broken=[2, 33])


@pytest.fixture
def tokenize(tmp_path, tiny_checkpoint, pictures):
    """tokenize(out, engine, code="", source=pictures) -> the finished process."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(out, engine, code="", source=pictures, *more):
        program = [sys.executable, tmp_path / "program.py", code, source, "--out", out]
        program += ["--engine", engine, "--image-tokenizer", tiny_checkpoint, "--num-workers", 2]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        return subprocess.run(
            [*map(str, program), "--samples-per-shard", "16", "--json", *more],
            capture_output=True, text=True, env=environ,
        )  # fmt: skip

    return run


def check_same(tokenize, files_of, out, **source):
    done = tokenize(out.parent / "whole", "local", **source)
    assert done.returncode == 0, done.stderr
    assert files_of(out) == files_of(out.parent / "whole")


@pytest.mark.ray
def test_two_workers_one_of_them_killed_write_the_same_bytes(tokenize, tmp_path, files_of):
    kill = "after(2, lambda: (os.kill(worker_pid(), signal.SIGKILL), print('killed')))"
    done = tokenize(tmp_path / "out", "ray", kill)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed\n")
    done = tokenize(tmp_path / "quiet", "ray")
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(tmp_path / "quiet")
    check_same(tokenize, files_of, tmp_path / "out")


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_killed_driver_is_resumed_with_the_same_bytes(tokenize, tmp_path, files_of, engine):
    out = tmp_path / "out"
    done = tokenize(out, "ray", "after(3, lambda: os.kill(os.getpid(), signal.SIGKILL))")
    assert done.returncode == -9, done.stderr
    assert not (out / "dataset.json").exists()
    done = tokenize(out, engine)
    assert done.returncode == 0, done.stderr
    check_same(tokenize, files_of, out)


@pytest.mark.ray
def test_speech_with_fitted_tables_and_a_killed_worker(tokenize, tmp_path, files_of, spoken):
    kill = "after(1, lambda: (os.kill(worker_pid(), signal.SIGKILL), print('killed')))"
    done = tokenize(tmp_path / "out", "ray", kill, source=spoken)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed\n")
    entry = Manifest.read(tmp_path / "out").columns["speech_units"]
    assert entry["codec"] == "huffman"
    check_same(tokenize, files_of, tmp_path / "out", source=spoken)


@pytest.mark.ray
def test_containers_are_listed_by_the_workers(tokenize, tmp_path, files_of, pictures):
    names = sorted(path.name for path in pictures.iterdir())
    for number in range(5):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for name in names[number::5]:
                archive.add(pictures / name, name)
    (tmp_path / "3.tar").write_bytes(b"broken")
    kill = "after(1, lambda: (os.kill(worker_pid(), signal.SIGKILL), print('killed')))"
    more = ("--per-container", "yes")
    done = tokenize(tmp_path / "out", "ray", kill, tmp_path / "{0..4}.tar", *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed\n")
    done = tokenize(tmp_path / "whole", "local", "", tmp_path / "{0..4}.tar", *more)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


# Failures, with a stand-in for Ray ----------------------------------------------------------------


class ActorDied(Exception):
    pass


@pytest.mark.ray
def test_a_lost_node_without_a_replacement(tokenize, tmp_path, files_of, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = [cluster.head_node, cluster.add_node(num_cpus=1)]
        raylets = {node.node_id: node.all_processes["raylet"][0].process.pid for node in nodes}
        code = f"""
os.environ["RAY_ADDRESS"] = "{cluster.address}"
ray_engine.BACKUP_S = 1
def lose_a_node():
    import ray
    del raylets[ray.get_runtime_context().get_node_id()]  # that of the driver
    os.kill(*raylets.values(), signal.SIGKILL)
    print("lost")
raylets = {raylets}
after(1, lose_a_node)
"""
        done = tokenize(tmp_path / "out", "ray", code)
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lost\n")
    check_same(tokenize, files_of, tmp_path / "out")


@pytest.mark.ray
def test_an_address_without_a_cluster_is_refused(tokenize, tmp_path):
    done = tokenize(tmp_path / "out", "ray", "os.environ['RAY_ADDRESS'] = '127.0.0.1:9'")
    assert done.returncode == 1
    assert re.search(r"^im2sp-tokenize: RAY_ADDRESS=127.0.0.1:9: no Ray cluster answers \(.*ref"
                     r"used\); start one with `ray start", done.stderr, re.M)  # fmt: skip


class TaskFailed(Exception):
    cause = JobError("a worker on n differs from the driver: torch: 2.12 there, 2.13 now")


class FakeRay:
    """What the engine uses of Ray. Workers encode here; the first `num_hanging` never do.

    With an error, each call fails.
    """

    def __init__(self, num_hanging=0, error=None, **resources):
        self.num_hanging, self.error, self.results = num_hanging, error, {}
        self.cluster_resources = lambda: resources
        self.exceptions = SimpleNamespace(RayTaskError=TaskFailed, RayActorError=ActorDied)

    def init(self, **_):
        pass

    shutdown = init

    def put(self, value):
        return value

    def remote(self, **_):
        return lambda actor: SimpleNamespace(remote=lambda *args: self.start(actor(*args)))

    def start(self, worker):
        self.num_hanging -= 1
        hangs = self.num_hanging >= 0

        def encode(*args):
            call = object()
            if not hangs:
                self.results[call] = None if self.error else worker.encode(*args)
            return call

        stop = SimpleNamespace(remote=worker.stop)
        return SimpleNamespace(encode=SimpleNamespace(remote=encode), stop=stop)

    def wait(self, calls, **_):
        return [call for call in calls if call in self.results][:1], calls

    def get(self, call):
        if self.error is not None:
            raise self.error
        return self.results[call]


@pytest.mark.parametrize(
    ("ray", "message"),
    [
        (
            FakeRay(error=ActorDied(), CPU=2),
            r"chunk 0 \(from 000.png\): its workers died 4 times; see",
        ),
        (FakeRay(error=TaskFailed(), CPU=2), r"^a worker on n differs from the driver: torch"),
        (FakeRay(GPU=2), r"the Ray cluster has no CPU$"),
    ],
)
def test_failures_are_reported(ray, message, twenty, fake_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    config = JobConfig(source=twenty, dataset_dir=tmp_path / "out", quiet=True)
    with pytest.raises(JobError, match=message):
        run_job(config, fake_tokenizer, cluster=RayCluster)


def hanging_job(monkeypatch, config, tokenizer, num_hanging):
    ray = FakeRay(num_hanging, CPU=2)
    monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(ray_engine, "BACKUP_S", 0)
    monkeypatch.setattr(job_config, "CHUNK_SIZE", 3)
    return run_job(config, tokenizer, cluster=RayCluster)


def test_chunks_of_a_worker_that_hangs_are_encoded_by_others(
    twenty, fake_tokenizer, tmp_path, monkeypatch
):
    config = JobConfig(source=twenty, dataset_dir=tmp_path / "out", quiet=True, num_workers=2)
    assert hanging_job(monkeypatch, config, fake_tokenizer, 1).manifest.num_samples == 20


def test_a_job_ends_when_all_workers_hang(twenty, fake_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "MAX_SILENCE_S", 0)
    config = JobConfig(source=twenty, dataset_dir=tmp_path / "out", quiet=True, num_workers=2)
    with pytest.raises(JobError, match="no worker has finished a chunk for 0 h; see `ray status`"):
        hanging_job(monkeypatch, config, fake_tokenizer, 2)


def test_ray_is_an_extra(twenty, fake_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    config = JobConfig(source=twenty, dataset_dir=tmp_path / "out", quiet=True)
    with pytest.raises(JobError, match=r"--engine ray needs the package ray: pip install 'im2sp"):
        run_job(config, fake_tokenizer, cluster=RayCluster)


def test_a_worker_that_differs_from_the_driver_is_refused(make_fake_tokenizer, twenty, tmp_path):
    config = JobConfig(source=twenty, dataset_dir=tmp_path / "out")
    worker = Worker(config, None, (make_fake_tokenizer(1), None), {"torch": "1.0"}, os.getcwd())
    with pytest.raises(JobError, match=r"a worker on .* differs .*torch: 1\.0 there, .* now"):
        worker.encode(0, ListedChunk(items=[]), None)


def test_a_worker_that_does_not_see_the_source_is_refused(fake_tokenizer, twenty, tmp_path):
    chunk = list_inputs(JobConfig(source=twenty, dataset_dir=tmp_path)).chunk(0)
    assert chunk.seen_file == twenty / "000.png"
    config = JobConfig(source=twenty, dataset_dir=tmp_path, allow_mixed=True)
    expected = {"image_tokenizer": {"fingerprint": fake_tokenizer.fingerprint}}
    worker = Worker(config, None, (fake_tokenizer, None), expected, os.getcwd())
    with pytest.raises(JobError, match=r"/gone\.png: missing on .*; workers need the source under"):
        worker.encode(0, chunk, twenty / "gone.png")
