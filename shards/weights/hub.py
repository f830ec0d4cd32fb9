"""Resolution of names of published weights to local files or model folders."""

import re
from pathlib import Path
from typing import Any, cast

from im2sp.shards.files import MAX_SETTINGS_BYTES, read_json
from im2sp.shards.weights.pickles import WeightsError

# The file to fetch from each known repository.
HUB_FILES = {
    "thuanz123/vitvqgan-imagenet-base": "imagenet_vitvq_base.ckpt",
    "thuanz123/vitvqgan-imagenet-small": "imagenet_vitvq_small.ckpt",
}
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".npy", ".pkl")
CONFIG_FILE = "config.json"
_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+?)(?:/(?P<file>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?"
)


def read_settings(path: Path) -> dict[str, Any]:
    """Settings beside weights: the object in a JSON file.

    Raises:
        WeightsError: The file is not JSON, or holds no object.
    """
    try:
        settings = read_json(path, MAX_SETTINGS_BYTES)
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise WeightsError(f"{path}: a {type(settings).__name__}, expected a JSON object")
    return cast(dict[str, Any], settings)


def find_weights(name_or_path: str | Path, bundled: dict[str, Path]) -> Path:
    """Local file of a bundled name, path or hub id; hub files are downloaded.

    A hub id is `owner/repository`, with `/file` if the repository is not one of `HUB_FILES`,
    and `@revision` (branch, tag or commit) to pin it.

    Raises:
        WeightsError: There is no such thing, or it cannot be fetched; says what to do.
    """
    name = str(name_or_path)
    if name in bundled:
        if not bundled[name].is_file():
            raise WeightsError(
                f"{name}: its file {bundled[name].name} is missing from the installed im2sp;"
                " install im2sp again, or pass a path or a hub id"
            )
        return bundled[name]
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    match = _HUB_ID.fullmatch(name)
    hub_file = match and (match["file"] or HUB_FILES.get(match["repo"]))
    if _is_path(name_or_path) or not match or (not hub_file and name.endswith(WEIGHT_SUFFIXES)):
        raise WeightsError(
            f"{name}: there is no such file; expected {_options(bundled)}, or the path of a weights"
            " file"
        )
    if not hub_file:
        raise WeightsError(
            f"{name}: which file of that hub repository is not known; write"
            f" {match['repo']}/FILE, or use {_options(bundled)}"
        )
    return _fetch(name, match["repo"], hub_file, match["revision"])


def find_model(name_or_path: str | Path, weight_files: tuple[str, ...]) -> Path:
    """Local weights file of a model folder, file path or hub id.

    If the name is that of a whole model (a folder or `owner/repository`), its `config.json` is in
    the same folder as the file; hub files are downloaded.

    Args:
        name_or_path: A folder, a file, or `owner/repository` with `/file` and `@revision`.
        weight_files: Names of a whole model's weights; the first existing one is used.

    Raises:
        WeightsError: There is no such thing, or it cannot be fetched; says what to do.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    choices = " or ".join(weight_files)
    if path.is_dir():
        found = [path / file for file in weight_files if (path / file).is_file()]
        if not found or not (path / CONFIG_FILE).is_file():
            raise WeightsError(f"{name}: this folder lacks {CONFIG_FILE}, or {choices}")
        return found[0]
    if path.exists():
        return path
    match = _HUB_ID.fullmatch(name)
    if (
        _is_path(name_or_path)
        or not match
        or (not match["file"] and name.endswith(WEIGHT_SUFFIXES))
    ):
        raise WeightsError(
            f"{name}: there is no such file; expected a folder with {CONFIG_FILE} and {choices},"
            " a weights file, or a hub id"
        )
    if match["file"]:
        return _fetch(name, match["repo"], match["file"], match["revision"])
    _fetch(name, match["repo"], CONFIG_FILE, match["revision"])
    for file in weight_files[:-1]:
        try:
            return _fetch(name, match["repo"], file, match["revision"])
        except WeightsError:  # older models have one of the other files
            continue
    return _fetch(name, match["repo"], weight_files[-1], match["revision"])


def find_beside(name_or_path: str | Path, file: str) -> Path | None:
    """Another file in the folder or hub repository of a whole model.

    Args:
        name_or_path: As `find_model` takes it.
        file: The file's name.

    Returns:
        None if the folder lacks it, or if the name is that of a single weights file.

    Raises:
        WeightsError: It cannot be fetched from the hub.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if path.exists() or _is_path(name_or_path):
        return path / file if (path / file).is_file() else None
    match = _HUB_ID.fullmatch(name)
    if not match or match["file"] or name.endswith(WEIGHT_SUFFIXES):
        return None
    return _fetch(name, match["repo"], file, match["revision"])


def _is_path(name_or_path: str | Path) -> bool:
    """Return True if a name without a file is a misspelt path, not a hub id."""
    if isinstance(name_or_path, Path) or name_or_path.startswith(("/", ".", "~")):
        return True
    parts = Path(name_or_path).parts
    return bool(parts) and Path(parts[0]).is_dir()


def _options(bundled: dict[str, Path]) -> str:
    return ", ".join([*bundled, *HUB_FILES])


def _fetch(name: str, repository: str, file: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        # One overload has an unknown type; without dry_run it returns a path.
        fetched = huggingface_hub.hf_hub_download(  # pyright: ignore[reportUnknownMemberType]
            repository, file, revision=revision
        )
        return Path(str(fetched))
    except Exception as error:
        # The hub client raises a dozen exception types, its own and its HTTP library's.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        pin = f" --revision {revision}" if revision else ""
        raise WeightsError(
            f"{name}: {file} is not in the local cache and could not be fetched; where there is"
            f" network, run `hf download {repository} {file}{pin}`, bring the file here and pass"
            f" its path ({type(error).__name__}: {reason})"
        ) from error
