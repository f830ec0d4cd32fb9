"""`im2sp-verify`: check every byte of a dataset."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from im2sp.shards.command_line import UsageError, run_command
from im2sp.shards.errors import ShardError, counted


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check a dataset: its manifest, every checksum, every batch and every value.

    Prints one line per problem. Exit code: 0 sound, 1 problems found, 2 wrong usage.
    """

    dataset_dir: tyro.conf.Positional[Path]
    """Folder or URL (s3://..) with dataset.json."""
    json: bool = False
    """Print one JSON object instead of lines."""
    quiet: bool = False
    """No progress bar and no summary."""


def main(args: list[str] | None = None) -> None:
    """Run the command; always ends with SystemExit."""
    sys.exit(run_command("im2sp-verify", VerifyConfig, _verify, args))


def _verify(config: VerifyConfig) -> int:
    from im2sp.shards.stores import folder_or_url

    dataset = folder_or_url(config.dataset_dir)
    if isinstance(dataset, Path) and not dataset.is_dir():
        raise UsageError(f"{dataset}: no such folder")
    from tqdm import tqdm

    from im2sp.shards.manifest import Manifest
    from im2sp.shards.verify import verify_dataset

    num_shards = num_samples = size_bytes = 0
    try:
        manifest = Manifest.read(dataset)
        num_shards, num_samples = len(manifest.shards), manifest.num_samples
        size_bytes = sum(shard.size_bytes for shard in manifest.shards)
    except ShardError:
        pass  # verify_dataset reports it
    with tqdm(
        total=size_bytes,
        desc="verify",
        unit="B",
        unit_scale=True,
        disable=config.quiet,
        file=sys.stderr,
    ) as bar:
        problems = verify_dataset(dataset, bar.update)
    is_sound = all(problem.is_note for problem in problems)
    if config.json:
        report = {
            "dataset_dir": str(dataset),
            "ok": is_sound,
            "num_shards": num_shards,
            "num_samples": num_samples,
            "problems": [asdict(problem) for problem in problems],
        }
        print(json.dumps(report, indent=2))
    else:
        for problem in problems:
            print(problem)
        if not config.quiet:
            verdict = "sound" if is_sound else counted(len(problems), "problem")
            counts = f"{counted(num_shards, 'shard')}, {counted(num_samples, 'sample')}"
            print(f"{dataset}: {counts}: {verdict}")
    return 0 if is_sound else 1


if __name__ == "__main__":
    main()
