"""Recipes and TOML files as flags.

Precedence: defaults < recipe < `--config run.toml` < flags. Recipe and file become flags before the
command line is parsed (`flags_of`), so a misspelt key fails like a misspelt flag.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from im2sp.shards.files import read_toml as read_toml_file

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "preset": "base",
        "items": "one",
        "freeze": "image",
        "steps": 100_000,
        "batch_size": 64,
        "learning_rate": 5e-5,
        "warmup_steps": 10_000,
        "schedule_steps": 100_000,
        "weight_decay": 1e-5,
        "betas": (0.9, 0.999),
        "clip_norm": 0.0,
        "label_smoothing": 0.0,
        "dropout": 0.1,
        "precision": "fp32",
        "best_by": "bleu",
    },
}
"""Settings of each recipe. `items`: the paper's code draws one utterance per image and batch."""

_PLAIN_FLAGS = frozenset({"without_image", "compile", "quiet", "json"})
"""Flags without a `--no-` form."""


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises:
        ValueError: The file does not exist or is not TOML.
    """
    try:
        return read_toml_file(path)
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"--config {path}: not TOML ({error})") from None


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Equivalent flags of settings.

    Raises:
        ValueError: No flag takes a value of this type.
    """
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            is_implied = not value and name in _PLAIN_FLAGS
            flags += [] if is_implied else [f"--{flag}" if value else f"--no-{flag}"]
        elif isinstance(value, str | int | float | Path):
            flags.append(f"--{flag}={value}")
        elif isinstance(value, list | tuple) and all(
            isinstance(one, str | int | float | Path) for one in value
        ):
            flags += [f"--{flag}", *map(str, value)] if value else []
        else:
            raise ValueError(f"{name} is {value!r}; expected a number, a string, true or false")
    return flags


def with_files(args: list[str]) -> list[str]:
    """A command line preceded by the flags of its recipe and of its `--config` file.

    Raises:
        ValueError: The file cannot be read, or there is no such recipe.
    """
    path = _last_value(args, "config")
    settings = read_toml(Path(path)) if path is not None else {}
    if "config" in settings:
        raise ValueError(f"--config {path}: names config; one file cannot name another")
    recipe = _last_value(args, "recipe") or settings.get("recipe")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"--recipe is {recipe}; expected one of {', '.join(RECIPES)}")
    return [*flags_of(RECIPES.get(recipe or "", {})), *flags_of(settings), *args]


def _last_value(args: list[str], name: str) -> str | None:
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value
