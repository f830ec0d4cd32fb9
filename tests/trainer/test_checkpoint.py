import json

import pytest

from im2sp.trainer.checkpoint import (
    CheckpointError,
    best_checkpoint,
    checkpoint_dirs,
    newest_whole,
    prune,
    read_checkpoint,
    write_checkpoint,
)

WRITERS = {"a.bin": lambda path: path.write_bytes(b"weights"), "b.toml": lambda path: path.touch()}


def write(run_dir, step, **scores):
    state = {"scores": scores, "best_by": "loss"}
    return write_checkpoint(run_dir, step, WRITERS, state)


def test_write_and_read(tmp_path):
    written = write(tmp_path, 20, loss=1.5)
    assert written.path == tmp_path / "step-000020"
    assert {path.name for path in written.path.iterdir()} == {"a.bin", "b.toml", "state.json"}
    found = read_checkpoint(written.path)
    assert (found.step, found.score("loss"), found.score("bleu")) == (20, 1.5, None)
    found.check_files()
    assert list(tmp_path.iterdir()) == [written.path]


def test_a_checkpoint_is_replaced(tmp_path):
    write(tmp_path, 20, loss=1.5)
    assert write(tmp_path, 20, loss=1.0).score("loss") == 1.0
    assert read_checkpoint(tmp_path / "step-000020").score("loss") == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000020"]


def test_a_full_disk_leaves_nothing(tmp_path):
    def fail(path):
        path.write_bytes(b"we")
        raise OSError(28, "No space left on device", str(path))

    write(tmp_path, 10)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 20, WRITERS | {"c": fail}, {"scores": {}, "best_by": "loss"})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


def test_every_flipped_byte_and_every_cut_is_detected(tmp_path):
    path = write(tmp_path, 20, loss=1.5).path
    for name in ("a.bin", "state.json"):
        data = (path / name).read_bytes()
        changed = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data))]
        changed += [data[:i] for i in range(len(data) - 1)]
        for other in changed:
            (path / name).write_bytes(other)
            try:
                found = read_checkpoint(path)
                found.check_files()
            except CheckpointError:
                continue
            assert json.loads(other) == json.loads(data)  # the space between two words
        (path / name).write_bytes(data)
    read_checkpoint(path).check_files()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "a.bin").unlink(), "a.bin: No such file"),
        (
            lambda path: (path / "a.bin").write_bytes(b"w"),
            r"a.bin: 1 bytes with sha256 .* has 7 b",
        ),
        (lambda path: (path / "state.json").unlink(), "state.json: No such file"),
        (lambda path: (path / "state.json").write_text("{"), "state.json: not JSON"),
        (lambda path: (path / "state.json").write_text("[]"), "state.json: not a checkpoint"),
        (
            lambda path: (path / "state.json").write_text(
                (path / "state.json").read_text().replace('version": 1', 'version": 2')
            ),
            "state.json: version 2, this im2sp reads 1",
        ),
        (
            lambda path: (path / "state.json").write_text(
                (path / "state.json").read_text().replace("1.5", "1.0")
            ),
            "state.json: checksum .* the file was changed",
        ),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    path = write(tmp_path, 20, loss=1.5).path
    change(path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path).check_files()
    write(tmp_path, 10)
    messages = []
    assert newest_whole(tmp_path, messages.append).step == 10
    assert len(messages) == 1
    assert str(tmp_path / "step-000020.broken") in messages[0]
    assert [found.name for found in checkpoint_dirs(tmp_path)] == ["step-000010"]


def test_best_and_last(tmp_path):
    assert best_checkpoint(tmp_path) is None
    assert newest_whole(tmp_path / "nowhere", print) is None
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (1_000_000, 2.5)):
        write(tmp_path, step, loss=loss)
    assert best_checkpoint(tmp_path).step == 2
    assert best_checkpoint(tmp_path, "bleu").step == 1_000_000
    (tmp_path / "step-000009.im2sp-0123abcd.tmp").mkdir()
    (tmp_path / "metrics.jsonl.im2sp-0123abcd.tmp").touch()
    (tmp_path / "step-000008.broken").mkdir()
    prune(tmp_path, 2)
    assert [path.name for path in checkpoint_dirs(tmp_path)] == [
        "step-000002", "step-000004", "step-1000000"
    ]  # fmt: skip
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".broken"}
