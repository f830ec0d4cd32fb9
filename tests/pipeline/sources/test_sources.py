import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

from im2sp.pipeline.decoding.images import ByteRange, read_image
from im2sp.pipeline.sources import SourceError, list_source
from im2sp.pipeline.sources.items import assign_keys, clean_key
from support.sources import keys_of, png_bytes, rejects_of, write

# Keys


def test_keys_keep_the_suffix_only_where_they_must():
    pairs = [("a", "a.jpg"), ("a", "a.png"), ("b", "b.jpg")]
    assert assign_keys(pairs) == ["a.jpg", "a.png", "b"]
    # The third one's short key is the first one's long key.
    pairs = [("a", "a.jpg"), ("a", "a.png"), ("a.jpg", "a.jpg.png")]
    assert assign_keys(pairs) == ["a.jpg", "a.png", "a.jpg.png"]
    assert assign_keys([("a",), ("a",)]) == ["a", "a"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/b", "a/b"),
        ("../../etc/x", "etc/x"),
        ("/abs//x/./y", "abs/x/y"),
        ("..", "_"),
        ("bad\udcff", "bad\\xff"),
        ("déjà vu – 猫", "déjà vu – 猫"),
    ],
)
def test_clean_key(name, key):
    assert clean_key(name) == key


# Folders


def test_a_folder_is_listed_by_path(tmp_path):
    write(
        tmp_path, "b/z.JPG", "b/a.png", "a.webp", "b-c.jpg", "many.dots.here.jpg", "deep/er/x.tiff"
    )
    write(tmp_path, "notes.txt", "table.csv", "README", ".hidden.png", ".cache/x.png", "b/.x.png")
    listing = list_source(tmp_path)
    assert listing.kind == "folder"
    names = ["a.webp", "b-c.jpg", "b/a.png", "b/z.JPG", "deep/er/x.tiff", "many.dots.here.jpg"]
    assert [item.name for item in listing.items] == names
    assert [item.key for item in listing.items] == [name.rsplit(".", 1)[0] for name in names]
    assert [item.image for item in listing.items] == [tmp_path / name for name in names]
    assert listing.ignored == {"(hidden)": 3, "(no suffix)": 1, ".csv": 1, ".txt": 1}
    assert list(listing.ignored) == sorted(listing.ignored)


def test_two_files_of_one_stem_keep_their_suffix(tmp_path):
    write(tmp_path, "dup/a.jpg", "dup/a.png", "a.jpg")
    assert keys_of(tmp_path) == ["a", "dup/a.jpg", "dup/a.png"]


def test_links_in_a_folder_are_followed(tmp_path):
    root = write(tmp_path / "root", "real.png", "sub/other.png")
    write(tmp_path, "outside.png", "far/deep/x.png", "far/y.png")
    (root / "inside.png").symlink_to("sub/other.png")
    (root / "leaves.png").symlink_to("../outside.png")
    (root / "nothing.png").symlink_to("gone.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "up").symlink_to("..")
    (root / "sub" / "self").symlink_to(".")
    (root / "away").symlink_to("../far")
    (tmp_path / "far" / "back").symlink_to("../root")
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    assert rejects_of(root) == {
        "loop.png": "link to nothing",
        "nothing.png": "link to nothing",
        "pipe.png": "not a regular file",
    }
    listing = list_source(root)
    good = [item.name for item in listing.items if not item.error]
    linked = ["away/deep/x.png", "away/y.png"]
    assert good == [*linked, "inside.png", "leaves.png", "real.png", "sub/other.png"]
    assert listing.ignored == {"(linked folder)": 3}


def test_links_between_many_folders_end(tmp_path):
    folders = [tmp_path / "root" / f"{n:02d}" for n in range(30)]
    for folder in folders:
        write(folder, "x.png")
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    listing = list_source(tmp_path / "root")
    assert [item.name for item in listing.items] == [f"{n:02d}/x.png" for n in range(30)]
    assert listing.ignored == {"(linked folder)": 900}


def test_a_linked_source_folder_is_followed(tmp_path):
    write(tmp_path / "real", "a.png")
    (tmp_path / "link").symlink_to("real")
    assert rejects_of(tmp_path / "link") == {}


def test_a_name_that_is_no_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(raw, "wb") as file:
        file.write(png_bytes())
    (item,) = list_source(tmp_path).items
    assert item.key == "caf\\xe9"
    assert item.name == "caf\\xe9.png"
    assert item.image is not None
    assert read_image(item.image, name=item.name).size == (2, 2)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(SourceError, match=r"holds no images and no audio files \(found no files\)"):
        list_source(tmp_path)
    write(tmp_path, "a.txt", "b.txt", "c")
    with pytest.raises(SourceError, match=r"found 2 \.txt, 1 \(no suffix\)"):
        list_source(tmp_path)


# Tars


def write_tar(path: Path, *members: tuple[str, bytes | tarfile.TarInfo], **options) -> Path:
    with tarfile.open(path, options.pop("mode", "w"), **options) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_a_tar_is_read_in_place(tmp_path, tar_format):
    long_name = "n" * 90 + "/déjà vu.png"
    names = ["./z.png", "a.b.jpg", long_name, "dup/a.jpg", "dup/a.png"]
    path = write_tar(
        tmp_path / "x.tar",
        *[(name, png_bytes(index)) for index, name in enumerate(names)],
        ("notes.txt", b"hello"),
        ("dir/.hidden.png", b""),
        ("folder.png", special(tarfile.DIRTYPE)),
        format=tar_format,
    )
    listing = list_source(path)
    assert listing.kind == "tar"
    assert [item.key for item in listing.items] == [
        "z", "a.b", "n" * 90 + "/déjà vu", "dup/a.jpg", "dup/a.png",
    ]  # fmt: skip
    assert listing.items[1].name == "x.tar/a.b.jpg"
    assert listing.ignored == {"(hidden)": 1, ".txt": 1}
    for index, item in enumerate(listing.items):
        assert isinstance(item.image, ByteRange)
        assert read_image(item.image, name=item.name).getpixel((0, 0)) == (index, 0, 0)


def test_unsafe_members_are_rejects(tmp_path):
    path = write_tar(
        tmp_path / "x.tar",
        ("good.png", png_bytes()),
        ("../escape.png", png_bytes()),
        ("/abs.png", png_bytes()),
        ("soft.png", special(tarfile.SYMTYPE, "../outside.png")),
        ("hard.png", special(tarfile.LNKTYPE, "gone.png")),
        ("pipe.png", special(tarfile.FIFOTYPE)),
        ("good.png", png_bytes()),
    )
    before = sorted(tmp_path.rglob("*"))
    assert list(rejects_of(path).items()) == [
        ("x.tar/../escape.png", "its name leaves the archive"),
        ("x.tar//abs.png", "its name leaves the archive"),
        ("x.tar/soft.png", "a link (to ../outside.png); links in a tar are not followed"),
        ("x.tar/hard.png", "a hard link to gone.png, which does not come before it"),
        ("x.tar/pipe.png", "not a regular file"),
        ("x.tar/good.png", "its key 'good.png' is already that of x.tar/good.png"),
    ]
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "escape.png").exists()


def test_a_hard_link_in_a_tar_is_its_target(tmp_path):
    link = special(tarfile.LNKTYPE, "./a.png")
    path = write_tar(tmp_path / "x.tar", ("./a.png", png_bytes(9)), ("b.png", link))
    a, b = list_source(path).items
    assert b.image == a.image
    assert read_image(b.image, name="b").getpixel((0, 0)) == (9, 0, 0)


def test_joined_tars_are_read_on(tmp_path):
    first = write_tar(tmp_path / "1.tar", ("a.png", png_bytes(1)), ("b.png", png_bytes(2)))
    second = write_tar(tmp_path / "2.tar", ("c.png", png_bytes(3)))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    items = list_source(joined).items
    assert [item.key for item in items] == ["a", "b", "c"]
    assert read_image(items[2].image, name="c").getpixel((0, 0)) == (3, 0, 0)
    joined.write_bytes(first.read_bytes() + b"x" * 512 + second.read_bytes())
    assert [item.key for item in list_source(joined).items[:2]] == ["a", "b"]
    assert "cut or damaged at byte 10,240: " in list_source(joined).items[2].error


def test_a_member_of_negative_size_ends_a_tar(tmp_path):
    path = write_tar(tmp_path / "x.tar", ("a.png", png_bytes()), ("b.png", b""))
    content = bytearray(path.read_bytes())
    start = content.index(b"b.png")
    content[start + 124 : start + 136] = b"\xff" * 12  # GNU's binary form of -1
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path.write_bytes(content)
    a, rest = list_source(path).items
    assert (a.error, a.key) == (None, "a")
    assert "a member of -1 bytes" in rest.error


def test_a_tar_of_endless_headers_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    pax = tarfile.TarInfo("h")
    pax.type, pax.size = tarfile.XHDTYPE, 0
    path.write_bytes(pax.tobuf() * 5000)
    with pytest.raises(SourceError, match="not a tar that can be read in place"):
        list_source(path)


def test_a_tar_of_many_global_headers_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    headers = {f"k{i}": "" for i in range(1001)}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        for number in range(3):
            tar.addfile(tarfile.TarInfo(f"{number}.png"))
    (rest,) = list_source(path).items
    assert rest.error.endswith("1,001 global headers")


def test_a_tar_cut_at_any_block_never_raises_beyond_source_errors(tmp_path):
    whole = write_tar(tmp_path / "x.tar", *[(f"{i}.png", png_bytes(i)) for i in range(3)])
    data = whole.read_bytes()[: 512 * 7]
    cut = tmp_path / "cut.tar"
    for end in range(0, len(data), 128):
        cut.write_bytes(data[:end])
        try:
            items = list_source(cut).items
        except SourceError:
            assert end < 1024
            continue
        for item in items:
            if item.image is not None:
                assert read_image(item.image, name=item.name).size == (2, 2)
        num_whole = sum(item.error is None for item in items)
        assert num_whole == sum(1024 * i + 512 + len(png_bytes(i)) <= end for i in range(3))
        if num_whole < 3 and end > 1024 * num_whole:
            assert len(items) > num_whole, f"{end}: the cut is not reported"


def test_a_damaged_header_is_reported(tmp_path):
    path = write_tar(tmp_path / "x.tar", *[(f"{i}.png", png_bytes(i)) for i in range(3)])
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # the second header's checksum field
    path.write_bytes(data)
    assert rejects_of(path) == {
        "x.tar": "the tar is cut or damaged at byte 1,024: not a member's header"
    }


def test_tars_that_cannot_be_used(tmp_path):
    packed = write_tar(tmp_path / "packed.tar", ("a.png", png_bytes()), mode="w:gz")
    with pytest.raises(SourceError, match=r"packed\.tar: not a tar that can be read in place"):
        list_source(packed)
    empty = write_tar(tmp_path / "empty.tar", ("a.txt", b""))
    with pytest.raises(SourceError, match=r"holds no images and no audio files \(found 1 \.txt\)"):
        list_source(empty)


# All


def write_manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="gone: no such file or folder"):
        list_source(tmp_path / "gone")
    path = write_manifest(tmp_path / "m.jsonl", [{"image": "a.png"}])
    with pytest.raises(
        SourceError, match=r"gone: no such image root; expected a folder or a \.tar"
    ):
        list_source(path, image_root=tmp_path / "gone")
    with pytest.raises(SourceError, match="this source contains its images"):
        list_source(write(tmp_path, "a.png"), image_root=tmp_path)


def test_a_description_changes_with_what_is_listed_alone(tmp_path):
    first = list_source(write(tmp_path / "one", "a.png", "b/c.jpg")).describe()
    again = list_source(write(tmp_path / "two", "b/c.jpg", "a.png")).describe()
    assert first == again
    assert first["kind"] == "folder"
    assert first["num_items"] == 2
    more = list_source(write(tmp_path / "two", "d.png")).describe()
    assert more != first
    path = tmp_path / "one" / "m.jsonl"
    seen = set()
    for row in ({"key": "k"}, {"caption": "x"}, {"split": "val"}, {"image": "gone.png"}, {}):
        write_manifest(path, [{"image": "a.png", **row}])
        seen.add(str(list_source(path).describe()["sha256"]))
    assert len(seen) == 5


def test_items_are_small_and_survive_pickling(tmp_path):
    write(tmp_path, *(f"{i:03}.png" for i in range(200)))
    items = list_source(tmp_path).items
    assert ForkingPickler.loads(pickle.dumps(items)) == items
    assert len(pickle.dumps(items)) / len(items) < 200 + len(str(tmp_path))


def test_the_shared_broken_folder(shared_data):
    listing = list_source(shared_data / "broken")
    assert listing.ignored[".tar"] == 3
    keys = [item.key for item in listing.items]
    assert len(set(keys)) == len(keys)
    assert sum(item.image is not None for item in listing.items) == 64
    assert {"dup/a.jpg", "dup/a.png", "plain_16k.flac", "plain_16k.wav"} <= set(keys)


# Output of im2sp-speak


def test_what_im2sp_speak_wrote_is_no_input(tmp_path):
    write(tmp_path, "a.jpg", "spoken/a.jpg", "spoken/a.units.jpg", "spoken/a.wav", "spoken/own.jpg")
    content = {"form": "im2sp-speak 1", "files": ["a.jpg", "a.units.jpg", "a.wav"]}
    (tmp_path / "spoken/.im2sp-speak.json").write_text(json.dumps(content))
    listing = list_source(tmp_path)
    assert [item.key for item in listing.items] == ["a", "spoken/own"]
    assert listing.ignored["(output of im2sp-speak)"] == 3
    (tmp_path / "spoken/own.jpg").unlink()
    assert [item.key for item in list_source(tmp_path / "spoken").items] == ["a", "a.units"]
    for text in ("[", "[]", '{"files": 3}'):
        (tmp_path / "spoken/.im2sp-speak.json").write_text(text)
        assert len(list_source(tmp_path).items) == 3


def test_paths_beyond_ascii_in_a_locale_of_ascii(tmp_path):
    write(tmp_path, "é.png", "ü/x.png")
    rows = [{"image": name} for name in ("é.png", "ü/x.png", "gone é.png")]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = (
        "import sys; from im2sp.pipeline.sources import list_source; "
        "print([item.error for item in list_source(sys.argv[1]).items])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                          "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert ended.stdout == "[None, None, 'line 3: no such image file']\n"
