"""Checkpoints: one folder a step, whole or not there.

    RUN/step-000020/
        model.safetensors   weights
        optimizer.pt        AdamW's averages, read with weights_only=True
        config.toml         the settings
        state.json          step, random numbers, loader position, scores, checksums of the files

A folder is written under another name and renamed when every byte is on disk. `state.json` carries
the size and sha256 of the other files and a checksum of itself, so that a folder that was damaged
later is noticed too. Which checkpoint is the best is not kept anywhere: it is the one whose
`state.json` has the best score.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from im2sp.shards.files import TMP_SUFFIX

MODEL_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.pt"
STATE_NAME = "state.json"
BROKEN_SUFFIX = ".broken"
_FORMAT = "im2sp-checkpoint"
_VERSION = 1
_STEP_DIR = re.compile(r"step-(\d{6,})")

Writer = Callable[[Path], object]
"""Writes one file at a path."""


class CheckpointError(ValueError):
    """A checkpoint is not whole; says what was found."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose `state.json` is sound."""

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps that were done."""
        return self.state["step"]

    def score(self, name: str) -> float | None:
        """A validation score, None where there was no validation."""
        return self.state["scores"].get(name)

    def check_files(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CheckpointError: A file is missing or is not what was written.
        """
        for name, expected in self.state["files"].items():
            try:
                found = _describe(self.path / name)
            except OSError as error:
                raise CheckpointError(f"{self.path / name}: {error.strerror}") from None
            if found != expected:
                raise CheckpointError(
                    f"{self.path / name}: {_shown(found)}, {STATE_NAME} says {_shown(expected)}"
                )


def step_dir(run_dir: Path, step: int) -> Path:
    """The folder of a step."""
    return run_dir / f"step-{step:06d}"


def write_checkpoint(
    run_dir: Path, step: int, writers: Mapping[str, Writer], state: Mapping[str, Any]
) -> Checkpoint:
    """Write a checkpoint; one of that step that is there is replaced.

    Args:
        run_dir: Folder of the run.
        step: Steps that were done.
        writers: Name of a file -> what writes it.
        state: What else `state.json` is to hold, with `scores`.

    Raises:
        OSError: The disk is full or the like. What was there is there still.
    """
    target = step_dir(run_dir, step)
    temporary = target.with_name(target.name + TMP_SUFFIX)
    _remove(temporary)
    temporary.mkdir()
    try:
        files: dict[str, Any] = {}
        for name, write in writers.items():
            write(temporary / name)
            files[name] = _describe(temporary / name)
        content = {"format": _FORMAT, "format_version": _VERSION, "step": step}
        content |= {**state, "files": files}
        (temporary / STATE_NAME).write_text(_signed(content))
        for name in (*writers, STATE_NAME):
            _fsync(temporary / name)
        _fsync(temporary)
        if target.exists():
            _remove(target)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(run_dir)
    return Checkpoint(target, content)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read `state.json` of a checkpoint.

    Raises:
        CheckpointError: It is missing, damaged, or of another version.
    """
    place = path / STATE_NAME
    try:
        content = json.loads(place.read_text())
    except OSError as error:
        raise CheckpointError(f"{place}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{place}: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{place}: no {_FORMAT!r}")
    if content.get("format_version") != _VERSION:
        version = content.get("format_version")
        raise CheckpointError(f"{place}: version {version!r}, this im2sp reads {_VERSION}")
    found = content.pop("sha256", None)
    expected = _sha256_of(content)
    if found != expected:
        raise CheckpointError(f"{place}: checksum {found} != {expected}; it was changed")
    return Checkpoint(path, content)


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """Folders of checkpoints, from the first step on; not yet looked into."""
    try:
        found = [path for path in run_dir.iterdir() if _STEP_DIR.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_whole(run_dir: Path, tell: Callable[[str], object]) -> Checkpoint | None:
    """The newest checkpoint whose files are all what was written, None where there is none.

    Those that are newer and broken are told of and renamed to `*.broken`, out of the way.
    """
    for path in reversed(checkpoint_dirs(run_dir)):
        try:
            checkpoint = read_checkpoint(path)
            checkpoint.check_files()
        except CheckpointError as error:
            aside = path.with_name(path.name + BROKEN_SUFFIX)
            _remove(aside)
            os.replace(path, aside)
            tell(f"passed over a broken checkpoint, now {aside}: {error}")
        else:
            return checkpoint
    return None


def best_checkpoint(run_dir: Path, score: str | None = None) -> Checkpoint | None:
    """The checkpoint with the best score: the newest where there was no validation.

    Args:
        run_dir: Folder of the run.
        score: Name of the score; the one the run goes by unless given.

    Returns:
        None where no folder has a sound `state.json`.
    """
    best = None
    for path in checkpoint_dirs(run_dir):
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            continue
        if best is None or _rank(found, score) >= _rank(best, score):
            best = found
    return best


def is_step(path: Path) -> bool:
    """Whether a folder is one step of a run, and not the run's own."""
    return (path / STATE_NAME).is_file()


def named_checkpoint(path: Path) -> Checkpoint | None:
    """The step whose folder is named, or the best one of the run whose folder is.

    Raises:
        CheckpointError: The step's record is damaged.
    """
    return read_checkpoint(path) if is_step(path) else best_checkpoint(path)


def prune(run_dir: Path, keep_last: int) -> None:
    """Remove all checkpoints but the best and the last ones, and what killed writers left."""
    paths = checkpoint_dirs(run_dir)
    best = best_checkpoint(run_dir)
    for path in paths[:-keep_last]:
        if best is None or path != best.path:
            _remove(path)
    for path in run_dir.glob(f"step-*{TMP_SUFFIX}"):
        _remove(path)


def _rank(checkpoint: Checkpoint, score: str | None) -> tuple[bool, float]:
    """What the best has most of. Losses are better when lower, other scores when higher."""
    name = score or checkpoint.state["best_by"]
    value = checkpoint.score(name)
    if value is None:
        return (False, checkpoint.step)
    return (True, -value if name == "loss" else value)


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size_bytes": os.fstat(file.fileno()).st_size, "sha256": sha256}


def _shown(description: Mapping[str, Any]) -> str:
    return f"{description['size_bytes']} bytes with sha256 {description['sha256'][:16]}.."


def _signed(content: Mapping[str, Any]) -> str:
    return json.dumps({**content, "sha256": _sha256_of(content)}, indent=1) + "\n"


def _sha256_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _remove(path: Path) -> None:
    """Remove a folder in two moves, so that a kill leaves no half of it under its name."""
    if not path.exists():
        return
    aside = path
    if not path.name.endswith(TMP_SUFFIX):
        aside = path.with_name(f"{path.name}.old{TMP_SUFFIX}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    shutil.rmtree(aside)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
