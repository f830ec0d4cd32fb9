"""Checkpoints: one folder per step, complete or absent.

    RUN/step-000020/
        model.safetensors   weights, or with --ema their average
        trained.safetensors with --ema, the weights themselves
        heads.safetensors   with --teacher, the heads that predict its features
        optimizer.pt        moments of AdamW, read with weights_only=True
        config.toml         settings
        state.json          step, seed, loader position, scores, checksums of the files

A folder is written under a temporary name and renamed when every byte is on disk. `state.json`
holds the size and sha256 of the other files and a checksum of itself, so later damage is detected
too. The best checkpoint is the one whose `state.json` has the best score; it is not recorded
elsewhere.
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

from im2sp.shards.files import (
    MAX_SETTINGS_BYTES,
    atomic_dir,
    read_json,
    remove_leftovers,
    temporary_path,
)

MODEL_NAME = "model.safetensors"
TRAINED_NAME = "trained.safetensors"
HEADS_NAME = "heads.safetensors"
OPTIMIZER_NAME = "optimizer.pt"
STATE_NAME = "state.json"
BROKEN_SUFFIX = ".broken"
_FORMAT = "im2sp-checkpoint"
_VERSION = 1
_STEP_DIR = re.compile(r"step-(\d{6,})")

Writer = Callable[[Path], object]
"""Function that writes one file at a path."""


class CheckpointError(ValueError):
    """A checkpoint is incomplete or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder with a valid `state.json`."""

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self.state["step"]

    def score(self, name: str) -> float | None:
        """A validation score; None if there was no validation."""
        return self.state["scores"].get(name)

    def check_files(self) -> None:
        """Compare every file with its size and checksum.

        Raises:
            CheckpointError: A file is missing or differs.
        """
        for name, expected in self.state["files"].items():
            try:
                found = _describe(self.path / name)
            except OSError as error:
                raise CheckpointError(f"{self.path / name}: {error.strerror}") from None
            if found != expected:
                raise CheckpointError(
                    f"{self.path / name}: {_shown(found)}, {STATE_NAME} has {_shown(expected)}"
                )


def step_dir(run_dir: Path, step: int) -> Path:
    """The folder of a step."""
    return run_dir / f"step-{step:06d}"


def write_checkpoint(
    run_dir: Path, step: int, writers: Mapping[str, Writer], state: Mapping[str, Any]
) -> Checkpoint:
    """Write a checkpoint, replacing an existing one of the same step.

    Args:
        run_dir: Folder of the run.
        step: Number of completed steps.
        writers: File name -> function that writes the file.
        state: Other contents of `state.json`, `scores` included.

    Raises:
        OSError: Writing failed, for example because the disk is full. Existing checkpoints stay.
    """
    target = step_dir(run_dir, step)
    with atomic_dir(target) as folder:
        files: dict[str, Any] = {}
        for name, write in writers.items():
            write(folder / name)
            files[name] = _describe(folder / name)
        content = {"format": _FORMAT, "format_version": _VERSION, "step": step}
        content |= {**state, "files": files}
        (folder / STATE_NAME).write_text(_signed(content))
        _remove(target)
    return Checkpoint(target, content)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read `state.json` of a checkpoint.

    Raises:
        CheckpointError: The file is missing, damaged, or of another version.
    """
    place = path / STATE_NAME
    try:
        content = read_json(place, MAX_SETTINGS_BYTES)
    except OSError as error:
        raise CheckpointError(f"{place}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{place}: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{place}: not a checkpoint; expected the format {_FORMAT!r}")
    if content.get("format_version") != _VERSION:
        version = content.get("format_version")
        raise CheckpointError(f"{place}: version {version!r}, this im2sp reads {_VERSION}")
    found = content.pop("sha256", None)
    expected = _sha256_of(content)
    if found != expected:
        raise CheckpointError(f"{place}: checksum {found} != {expected}; the file was changed")
    return Checkpoint(path, content)


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """Folders of checkpoints in the order of their steps; their contents are not checked."""
    try:
        found = [path for path in run_dir.iterdir() if _STEP_DIR.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_whole(run_dir: Path, log: Callable[[str], object]) -> Checkpoint | None:
    """The newest undamaged checkpoint; None if there is none.

    Damaged ones that are newer are logged and renamed to `*.broken`.
    """
    for path in reversed(checkpoint_dirs(run_dir)):
        try:
            checkpoint = read_checkpoint(path)
            checkpoint.check_files()
        except CheckpointError as error:
            aside = path.with_name(path.name + BROKEN_SUFFIX)
            _remove(aside)
            os.replace(path, aside)
            log(f"skipped a broken checkpoint, now {aside}: {error}")
        else:
            return checkpoint
    return None


def best_checkpoint(run_dir: Path, score: str | None = None) -> Checkpoint | None:
    """The checkpoint with the best score, or the newest if there was no validation.

    Args:
        run_dir: Folder of the run.
        score: Name of the score; by default the run's `best_by`.

    Returns:
        None if no folder has a valid `state.json`.
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
    """True for the folder of one checkpoint, False for that of a run."""
    return (path / STATE_NAME).is_file()


def named_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at a path, or the best one of the run at that path.

    Raises:
        CheckpointError: `state.json` of the checkpoint is damaged.
    """
    return read_checkpoint(path) if is_step(path) else best_checkpoint(path)


def prune(run_dir: Path, keep_last: int) -> None:
    """Remove all checkpoints but the best and the last ones, and leftovers of killed writers."""
    paths = checkpoint_dirs(run_dir)
    best = best_checkpoint(run_dir)
    for path in paths[:-keep_last]:
        if best is None or path != best.path:
            _remove(path)
    remove_leftovers(run_dir)


def _rank(checkpoint: Checkpoint, score: str | None) -> tuple[bool, float]:
    """Sort key, highest for the best: a loss counts negatively, any other score positively."""
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
    """Rename a folder, then remove it, so that a kill leaves no partial folder under its name."""
    if path.exists():
        aside = temporary_path(path)
        os.replace(path, aside)
        shutil.rmtree(aside)
