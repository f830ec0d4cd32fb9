"""Make one file of a run: the model, and which tokenizers its units are of.

    python tools/export_captioner.py runs/speech captioner.safetensors [--precision fp32]

The best step is taken, or the one whose folder is given. `im2sp-speak --run captioner.safetensors`
and `im2sp-evaluate` take the file in place of the run. In half precision (the default) it is half
as large; a unit here and there comes out differently. Exit codes: 0 written, 1 not possible, 2
usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from im2sp.tools.speak_run import find_step
from im2sp.trainer.export import export_model


def main(args: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run of im2sp-train, or one of its steps")
    parser.add_argument("out", type=Path, help="file to write, .safetensors")
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    options = parser.parse_args(args)
    try:
        checkpoint = find_step(options.run)
        if "speech" not in checkpoint.state["fingerprints"]:
            raise ValueError(f"{options.run}: its target is not speech")
        export_model(checkpoint, options.out, options.precision)
    except (ValueError, OSError) as error:
        print(f"export_captioner: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    size = options.out.stat().st_size
    print(f"{options.out}: step {checkpoint.step:,}, {options.precision}, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
