"""A local cache of the Hugging Face hub, in the layout of its client."""

from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached_repository(cache: Path, repository: str) -> Path:
    """Folder for a repository's files; `cache` is HF_HOME's `hub`."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot
