"""Sources in stores and on web servers, and URLs in source lists."""

import io
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline.decoding.media import MediaError, Url, read_bytes
from im2sp.pipeline.sources import SourceError, list_source
from support.servers import web_server
from support.sources import png_bytes, write
from support.speech_sources import FLICKR8K_CAPTIONS, flickr8k_tree


@pytest.fixture
def put():
    """put(name, content) -> its URL in fsspec's store in memory."""
    store = fsspec.filesystem("memory")

    def pipe(name, content=b""):
        store.pipe(f"/bucket/{name}", content)
        return f"memory://bucket/{name}"

    pipe("other/x")
    yield pipe
    store.rm("/bucket", recursive=True)


def content_of(items):
    return [read_bytes(item.image) for item in items]


def test_a_folder_of_a_store_is_listed_as_a_local_one(put, tmp_path):
    files = {"b/2.png": png_bytes(2), "a.png": png_bytes(1), "b/2_0.wav": b"w", "n.md": b""}
    files |= {"a.txt": b"a caption", "b/2_0.txt": b"spoken", "c.json": b"{}", ".hidden/x.png": b""}
    for name, content in files.items():
        put(f"d/{name}", content)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    stored, local = list_source("memory://bucket/d/"), list_source(tmp_path)
    assert stored.describe() == local.describe()
    assert content_of(stored.items) == content_of(local.items)
    assert stored.items[0].image == Url(
        url="memory://bucket/d/a.png", version=stored.items[0].image.version
    )
    assert stored.ignored == {"(hidden)": 1, ".json": 1, ".md": 1}
    both = list_source(["memory://bucket/d", tmp_path])
    assert [item.key for item in both.items] == [
        *("d/a", "d/b/2", f"{tmp_path.name}/a", f"{tmp_path.name}/b/2"),
    ]


def test_files_of_a_store_are_sources(put):
    urls = [put("x/a.png", png_bytes(1)), put("x/b.png", png_bytes(2)), put("x/b.wav")]
    (item,) = list_source(urls[0]).items
    assert (item.key, item.name) == ("a", "a.png")
    items = list_source("memory://bucket/x/*.[pw]*").items
    assert [item.key for item in items] == ["a", "b"]
    assert content_of(items) == [png_bytes(1), png_bytes(2)]
    assert items[1].utterances[0].audio == Url(url=urls[2])
    assert list_source("memory://bucket/x/{a,b}.png").describe()["num_items"] == 2


def test_entries_of_a_list_may_be_urls(put, tmp_path):
    rows = [
        {"image": put("i/a.png", png_bytes(1)), "caption": "one", "audio": put("i/a.wav", b"w")},
        {"image": "b.png"},
        {"image": "https://user:word@127.0.0.1:9/c.png?key=abc"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path, "b.png")
    a, b, c = list_source(path).items
    assert (a.key, a.name) == ("bucket/i/a", "memory://bucket/i/a.png")
    assert read_bytes(a.image) == png_bytes(1)
    assert read_bytes(a.utterances[0].audio) == b"w"
    assert b.image == tmp_path / "b.png"
    assert (c.key, c.name) == ("127.0.0.1:9/c", "https://127.0.0.1:9/c.png")


def test_a_list_in_a_store_starts_from_its_folder(put):
    put("set/images/a.png", png_bytes(1))
    put("set/images/a.flac", b"f")
    rows = "image,audio,caption\nimages/a.png,images/a.flac,one\n"
    url = put("set/list.csv", rows.encode())
    (item,) = list_source(url).items
    assert (item.key, item.captions) == ("images/a", ())
    assert read_bytes(item.image) == png_bytes(1)
    assert read_bytes(item.utterances[0].audio) == b"f"
    moved = put("elsewhere/list.csv", b"image,audio\na.png,a.flac\n")
    roots = {"image_root": "memory:/bucket/set/images", "audio_root": "memory:/bucket/set/images"}
    (item,) = list_source(moved, **roots).items
    assert read_bytes(item.image) == png_bytes(1)
    assert read_bytes(item.utterances[0].audio) == b"f"


def test_json_files_in_a_store(put, tmp_path):
    path, images, _ = flickr8k_tree(tmp_path)
    put("k/dataset_flickr8k.json", path.read_bytes())
    for name in FLICKR8K_CAPTIONS:
        put(f"k/{name}", (images / name).read_bytes())
    stored = list_source("memory://bucket/k/dataset_flickr8k.json")
    assert stored.describe() == list_source(path, image_root=images).describe()
    assert content_of(stored.items)[0] == (images / next(iter(FLICKR8K_CAPTIONS))).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.jsonl", b'{"a": 1}', r"^memory://bucket/x\.jsonl: found columns \['a'\]; expected"),
        ("gone.csv", None, r"^memory://bucket/gone\.csv: no such file$"),
        ("folder", None, r"^memory://bucket/folder: no such file or folder; check the URL"),
        ("x/a.md", b"", r"^memory://bucket/x/a\.md: no such file or folder; check the URL"),
        (
            "empty/x.md",
            b"",
            r"^memory://bucket/empty: holds no images and no audio files",
        ),
        ("x.tar", b"", r"^memory://bucket/x\.tar: a file of this kind is not read from a"),
        ("*.gif", None, r"^memory://bucket/\*\.gif: no file or folder matches"),
    ],
)
def test_sources_that_cannot_be_used(put, name, content, match):
    if content is not None:
        put(name, content)
    with pytest.raises(SourceError, match=match):
        list_source(f"memory://bucket/{name.removesuffix('/x.md')}")


def test_folders_of_containers_in_a_store_are_known(put):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": ["x.png"]}), buffer)
    for name in ("train/state.json", "train/data-0.arrow", "train/cache-1.arrow", "x.json"):
        put(f"saved/{name}", b'{"_data_files": [{"filename": "data-0.arrow"}]}')
    with pytest.raises(
        SourceError, match=r"^memory://bucket/saved/train/data-0\.arrow: a file of this kind"
    ):
        list_source("memory://bucket/saved")
    put("hub/data/a.parquet")
    with pytest.raises(
        SourceError, match=r"^memory://bucket/hub/data/a\.parquet: a file of this k"
    ):
        list_source("memory://bucket/hub")


def test_images_of_a_web_server(put):
    with web_server() as site:
        site.files["a.png"] = png_bytes(3)
        (item,) = list_source(f"{site.url}/a.png?size=large").items
        assert (item.key, read_bytes(item.image)) == ("a", png_bytes(3))
        gone, folder = f"{site.url}/gone.png", f"{site.url}/folder/"
        with pytest.raises(MediaError, match="^no such file$"):
            read_bytes(list_source(gone).items[0].image)
        with pytest.raises(SourceError, match="a web server cannot be listed; give the URLs"):
            list_source(folder)
