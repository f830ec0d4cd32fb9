"""Several sources in one command: ranges, wildcards, keys."""

import json
import os

import pytest

from im2sp.pipeline.sources import SourceError, list_source
from im2sp.pipeline.sources.several import expand_sources, prefixes
from support.sources import png_bytes, write, write_tar
from support.speech_sources import touch, write_sound

# Ranges and wildcards


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("x{,-2}", ["x", "x-2"]),
        ("{-01..01}", ["-01", "000", "001"]),
        ("{x}{y..z}", ["{x}{y..z}"]),
    ],
)
def test_braces_are_those_of_a_shell(tmp_path, monkeypatch, pattern, names):
    monkeypatch.chdir(touch(tmp_path, *names))
    assert expand_sources([pattern]) == names


def test_wildcards_match_existing_files_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "b/1.tar", "b/0.tar", "a/2.tar", "a/x.txt", "a/[0].tar"))
    assert expand_sources(["*/[0-9].tar"]) == ["a/2.tar", "b/0.tar", "b/1.tar"]
    assert expand_sources(["**/?.tar"]) == ["a/2.tar", "b/0.tar", "b/1.tar"]
    assert expand_sources(["{b,a}/*.tar"])[:3] == ["b/0.tar", "b/1.tar", "a/2.tar"]
    assert expand_sources(["a/[0].tar"]) == ["a/[0].tar"], "a name that exists is no pattern"
    with pytest.raises(SourceError, match=r"\*\.png: no file or folder matches; check the pat"):
        expand_sources(["*.png"])


def test_a_range_with_gaps_names_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "0.tar", "2.tar"))
    match = r"^1\.tar: no such file or folder \(2 of the 4 sources of \{0\.\.3\}\.tar\); check"
    with pytest.raises(SourceError, match=match):
        expand_sources(["{0..3}.tar"])
    with pytest.raises(SourceError, match=r"names more than 1,000,000 sources; give fewer"):
        expand_sources(["{0..99999999}.tar"])
    with pytest.raises(SourceError, match=r"\./0\.tar: this source is given twice; give it once"):
        expand_sources(["0.tar", "./0.tar"])


# Keys


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/d/00.tar", "/d/01.tar"], ["00", "01"]),
        (["/a/x.tar", "/b/x.tar", "/b/y.tar"], ["a/x", "b/x", "b/y"]),
        (["/a/x.tar", "/a/x.csv"], ["x.tar", "x.csv"]),
        (["/x.tar", "/a/x.tar"], ["x", "a/x"]),
    ],
)
def test_prefixes_are_the_shortest_that_differ(paths, expected):
    assert prefixes(paths) == expected


def test_keys_and_rejects_of_several_sources_name_them(tmp_path):
    one = write_tar(tmp_path / "1.tar", {"a.png": png_bytes(), "../b.png": png_bytes()})
    two = write_tar(tmp_path / "2.tar", {"a.png": png_bytes(), "n.txt": b"", "c.cls": b"1"})
    folder = write(tmp_path / "more", "a.png", "d/e.png", "x.md")
    write_sound(folder, "a_0.wav")
    rows = tmp_path / "list.jsonl"
    rows.write_text('{"image": "more/a.png", "alt": 1}\n{"image": "gone.png"}\n')
    listing = list_source([one, two, folder, rows])
    assert listing.kind == "tar+folder+jsonl"
    assert [item.key for item in listing.items if not item.error] == [
        *("1/a", "2/a", "more/a", "more/d/e", "list/more/a"),
    ]
    assert {item.name: item.error for item in listing.items if item.error} == {
        "1.tar/../b.png": "its name leaves the archive",
        "list.jsonl/gone.png": "line 2: no such image file",
    }
    assert listing.items[3].name == "more/a.png"
    assert listing.items[3].utterances[0].name == "more/a_0.wav"
    assert listing.ignored == {".cls": 1, ".md": 1, ".txt": 1}
    assert [note.partition(": ")[0] for note in listing.notes] == ["list.jsonl"]
    again = list_source([str(one), f"{tmp_path}/[2].tar", str(folder), str(rows)])
    assert again.describe() == listing.describe()
    assert list_source([two, one, folder, rows]).describe() != listing.describe()


def test_a_folder_of_tars_stands_for_them(tmp_path):
    for name in ("00001", "00000", "sub/00002"):
        write(tmp_path, f"{name}_stats.json", f"{name}.parquet")
        write_tar(tmp_path / f"{name}.tar", {f"{name[-1]}.png": png_bytes()})
    listing = list_source(tmp_path)
    assert [item.key for item in listing.items] == ["00000/0", "00001/1", "00002/2"]
    assert listing.kind == "tar"
    assert listing.ignored == {".json": 3, ".parquet": 3}
    with pytest.raises(SourceError, match=r"00001\.tar: this source is given twice"):
        list_source([tmp_path / "00001.tar", tmp_path])
    write(tmp_path, "a.png")
    listing = list_source(tmp_path)
    assert (listing.kind, len(listing.items), listing.ignored[".tar"]) == ("folder", 1, 3)


# Images and clips given as files


def test_images_and_clips_are_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, "a.png", "x/b.png", "x/c.png"))
    write_sound(tmp_path, "x/b_0.wav")
    (item,) = list_source("a.png").items
    assert (item.key, item.name) == ("a", "a.png")
    assert list_source("a.png").kind == "files"
    items = list_source(["x/b.png", "x/c.png", "x/b_0.wav"]).items
    assert [item.key for item in items] == ["b", "c"]
    assert [clip.name for clip in items[0].utterances] == ["b_0.wav"]
    items = list_source(["a.png", "x", "x/c.png"]).items
    assert [item.key for item in items] == ["a", "c", "x/b", "x/c"]
    (tmp_path / "y").mkdir()
    (tmp_path / "y/c.png").touch()
    assert [item.key for item in list_source(["x/c.png", "y/c.png"]).items] == ["x/c", "y/c"]
    os.mkfifo("pipe.png")
    assert [item.error for item in list_source("pipe.png").items] == ["not a regular file"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image_root": "."}, r"a\.png: an image root \(\.\) applies to a JSON file"),
        ({"audio_root": "."}, r"an audio root \(\.\) does not apply to image and audio files; le"),
        ({"columns": {"key": "id"}}, r"a\.png: --columns key=id applies to a \.jsonl"),
    ],
)
def test_options_of_lists_do_not_apply_to_files(tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(write(tmp_path, "a.png"))
    with pytest.raises(SourceError, match=match):
        list_source("a.png", **options)


# Captions beside the media


@pytest.fixture(params=["folder", "tar"])
def source(request, tmp_path):
    """source(files) -> a folder or tar that holds them."""

    def make(files):
        if request.param == "tar":
            return write_tar(tmp_path / "00000.tar", files)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return make


def test_captions_of_img2dataset(source):
    meta = {"caption": "of the json", "url": "u", "key": "000000000", "status": "success"}
    files = {}
    for number, text in enumerate(["two dogs \n", None, "A café\r\na bar"]):
        files[f"00000000{number}.jpg"] = png_bytes(number)
        if text is not None:
            files[f"00000000{number}.txt"] = text.encode()
        files[f"00000000{number}.json"] = json.dumps(meta).encode()
    listing = list_source(source(files))
    assert [(item.key, item.captions) for item in listing.items] == [
        ("000000000", ("two dogs",)),
        ("000000001", ("of the json",)),
        ("000000002", ("A café", "a bar")),
    ]
    assert listing.ignored == {".json": 2}


def test_files_that_hold_no_captions_are_ignored(source):
    files = {f"{number}.png": png_bytes() for number in range(5)}
    files |= {"0.json": b"[1]", "1.json": b"{", "2.json": b'{"caption": null}', "3.txt": b" \n"}
    files |= {"4.json": b'{"captions": ["a", 3, "b"]}', "other.txt": b"no image"}
    listing = list_source(source(files))
    captions = [item.captions for item in listing.items]
    assert captions == [(), (), (), (), ("a", "b")]
    assert listing.ignored == {".json": 3, ".txt": 2}


def test_more_captions_than_a_sample_holds_are_a_reject(source):
    files = {"a.png": png_bytes(), "a.txt": b"a\n" * 65_537, "b.png": png_bytes()}
    files |= {"b.txt": b"a\n" * 65_536}
    a, b = list_source(source(files)).items
    assert a.error == "65,537 captions and clips, expected at most 65,536"
    assert (b.error, len(b.captions)) == (None, 65_536)


def test_a_caption_that_cannot_be_read_is_a_reject(source):
    files = {"a.png": png_bytes(), "a.txt": b"caf\xe9", "b.png": png_bytes(), "b.txt": b"x" * 2**21}
    *images, a, b = list_source(source(files)).items
    assert [(item.key, item.error, item.captions) for item in images] == [
        ("a", None, ()),
        ("b", None, ()),
    ]
    assert a.name.endswith("a.txt")
    assert a.error == "not UTF-8 text (unexpected end of data at byte 3)"
    assert b.error == "2,097,152 bytes; files over 1,048,576 are not read"


def test_text_beside_a_clip_is_its_transcript(source):
    files = {"a.png": png_bytes(), "a.wav": b"", "a.txt": b"one", "a_1.wav": b"", "a_1.txt": b"two"}
    files |= {"b.png": png_bytes(), "b.wav": b"", "b.txt": b"one\ntwo", "c.wav": b"", "c.txt": b"c"}
    a, b, c = list_source(source(files)).items
    assert [clip.text for clip in a.utterances] == ["one", "two"]
    assert a.captions == ()
    assert ([clip.text for clip in b.utterances], b.captions) == ([None], ("one", "two"))
    assert c.utterances[0].text == "c"


# Compressed tars


@pytest.mark.parametrize(("mode", "program"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_compressed_tars_are_refused_with_advice(tmp_path, mode, program, name):
    import tarfile

    with tarfile.open(tmp_path / name, f"w:{mode}") as archive:
        archive.add(write(tmp_path, "a.png") / "a.png")
    match = rf"{name}: not a tar .* \(compressed with {program}\); .*: {program} -dc {name} > x-"
    with pytest.raises(SourceError, match=match):
        list_source(tmp_path / name)
