"""A local cache of the Hugging Face hub, as its client keeps one."""

from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached_repository(cache: Path, repository: str) -> Path:
    """The folder to put a repository's files into; `cache` is HF_HOME's `hub`."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot
