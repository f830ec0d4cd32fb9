"""`im2sp-train`: shards, and with `--input pixels` images, to a trained captioner.

The command of `trainer.cli`, which trains on shards alone; the features of images, which a frozen
image encoder computes, are written first.
"""

from im2sp.trainer.cli import Log
from im2sp.trainer.cli import main as run_trainer
from im2sp.trainer.config import TrainConfig


def main(args: list[str] | None = None) -> None:
    """Run the command; always raises SystemExit."""
    run_trainer(args, prepare=_prepare)


def _prepare(config: TrainConfig, log: Log) -> None:
    from im2sp.tools.engines.image_features import prepare_features

    prepare_features(config, log)


if __name__ == "__main__":
    main()
