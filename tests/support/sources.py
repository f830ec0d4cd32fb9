"""Small sources and checks of their listings."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from im2sp.pipeline.sources import list_source


def png_bytes(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes())
    return folder


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def keys_of(path: Path, **options) -> list[str]:
    return [item.key for item in list_source(path, **options).items]


def rejects_of(path: Path, **options) -> dict[str, str]:
    items = list_source(path, **options).items
    assert all(item.image is None for item in items if item.error)
    return {item.name: item.error for item in items if item.error}
