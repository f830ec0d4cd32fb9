"""Tars and tables that are listed one by one, where they are encoded."""

import errno
import json
import os
import shutil
import tracemalloc
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline.job import inputs as job_inputs
from im2sp.pipeline.job.config import JobConfig, JobError
from im2sp.pipeline.job.plan import list_inputs
from im2sp.pipeline.job.run import run_job, run_part
from im2sp.pipeline.sources import SourceError, several
from im2sp.pipeline.sources.several import find_containers
from im2sp.pipeline.summary import part_json, part_summary, summary, summary_json
from im2sp.shards import ShardDataset
from support.kills import PLACES, Killed, stop_at, was_killed
from support.servers import web_server
from support.sources import png_bytes, write_tar

pytestmark = pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")

BROKEN = {
    "02.tar": "not a tar that can be read in place",
    "03.tar": "holds no images and no audio files (found no files)",
}


@pytest.fixture
def tokenizers(fake_tokenizer, fake_speech):
    return fake_tokenizer, fake_speech


@pytest.fixture
def tars(spoken, tmp_path):
    """7 tars: of images and clips, a broken and an empty one, a cut one, and of clips alone."""
    files = {path.name: path.read_bytes() for path in sorted(spoken.iterdir())}
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, start in ((0, "00"), (1, "01"), (4, "00"), (6, "talk")):
        held = {name: data for name, data in files.items() if name.startswith(start)}
        captions = {"000.txt": b"a dog\nthe dog", "notes.md": b""} if number != 1 else {}
        write_tar(folder / f"{number:02d}.tar", held | captions)
    (folder / "02.tar").write_bytes(b"broken" * 200)
    (folder / "03.tar").write_bytes(bytes(10240))
    cut = write_tar(folder / "05.tar", {f"{n}.png": png_bytes(n) for n in range(4)})
    cut.write_bytes(cut.read_bytes()[:2300])
    return folder


@pytest.fixture
def config(tars, tmp_path):
    return JobConfig(
        source=f"{tars}/{{00..06}}.tar",
        dataset_dir=tmp_path / "out",
        num_workers=1,
        quiet=True,
        samples_per_shard=16,
        per_container="yes",
    )


@pytest.fixture
def expected(config, tokenizers, tmp_path, files_of):
    run_job(replace(config, dataset_dir=tmp_path / "whole"), *tokenizers)
    return files_of(tmp_path / "whole")


def samples_of(folder):
    return {
        sample.key: (
            sample.image_units.tolist() if sample.image_units is not None else None,
            [units.tolist() for units in sample.speech_units],
            list(sample.captions),
        )
        for sample in ShardDataset(folder)
    }


def rejects_of(folder):
    rows = map(json.loads, (folder / "rejects.jsonl").read_text().splitlines())
    return {(row["file"], row["reason"]) for row in rows}


# The same samples ---------------------------------------------------------------------------------


def test_samples_and_rejects_are_those_of_one_listing(config, tokenizers, tars, tmp_path):
    for name in BROKEN:
        (tars / name).unlink()
    config = replace(config, source=tars)
    result = run_job(config, *tokenizers)
    one = run_job(replace(config, dataset_dir=tmp_path / "one", per_container="no"), *tokenizers)
    assert samples_of(config.dataset_dir) == samples_of(tmp_path / "one")
    assert rejects_of(config.dataset_dir) == rejects_of(tmp_path / "one")
    assert result.manifest.splits == one.manifest.splits
    raw = dict(result.manifest.raw)
    assert (raw.pop("num_inputs"), raw.pop("num_ignored")) == (
        len(one.inputs.items),
        sum(one.inputs.ignored.values()),
    )
    assert raw == one.manifest.raw
    source = result.manifest.settings["source"]
    assert (source["kind"], source["num_containers"]) == ("tar", 5)
    assert str(tmp_path) not in (config.dataset_dir / "dataset.json").read_text()


def test_tables_are_containers(fake_tokenizer, tmp_path):
    for number in range(3):
        rows = {
            "image": [{"bytes": png_bytes(10 * number + row), "path": None} for row in range(5)],
            "text": [f"{number} {row}" for row in range(5)],
            "width": [1] * 5,
        }
        pq.write_table(pa.table(rows), tmp_path / f"{number}.parquet")
    (tmp_path / "4.parquet").write_bytes(b"PAR1 not")
    config = JobConfig(
        source=f"{tmp_path}/*.parquet",
        columns=("caption=text",),
        dataset_dir=tmp_path / "out",
        num_workers=1,
        quiet=True,
        per_container="yes",
    )
    result = run_job(config, fake_tokenizer)
    assert rejects_of(config.dataset_dir).pop()[0] == "4.parquet"
    (tmp_path / "4.parquet").unlink()
    one = replace(config, dataset_dir=tmp_path / "one", per_container="no")
    run_job(one, fake_tokenizer)
    assert samples_of(config.dataset_dir) == samples_of(one.dataset_dir)
    assert len(samples_of(one.dataset_dir)) == 15
    assert "not used  0.parquet: columns not used" in summary("s", config.dataset_dir, result)
    assert result.manifest.settings["source"]["columns"] == {"caption": "text"}


# The same bytes -----------------------------------------------------------------------------------


def test_broken_containers_are_rejects(config, tokenizers, expected, tmp_path):
    rejects = dict(rejects_of(tmp_path / "whole"))
    for name, reason in BROKEN.items():
        assert rejects[name].startswith(reason)
    assert rejects["05.tar/05.tar"].startswith("the tar is cut or damaged at byte")
    result = run_job(replace(config, dataset_dir=tmp_path / "whole"), *tokenizers)
    assert result.was_finished
    text = summary("the tars", tmp_path / "whole", result)
    assert "read      29 inputs of the tars (tar, 7 containers); already done" in text
    assert "ignored   4 files (4 in containers)" in text
    assert json.loads(summary_json(tmp_path / "whole", result))["num_inputs"] == 29


@pytest.mark.parametrize("num_parts", [1, 3])
def test_parts_in_any_order_end_with_the_same_bytes(
    config, tokenizers, expected, files_of, num_parts
):
    for index in reversed(range(num_parts)):
        result = run_part(config, (index, num_parts), *tokenizers)
    assert result.num_left == 0
    if num_parts == 3:
        assert "part 0/3  3 containers of s; " in part_summary("s", "0/3", result)
        assert json.loads(part_json(config.dataset_dir, "0/3", result))["unit"] == "container"
    assert run_job(config, *tokenizers).num_encoded == 0
    assert files_of(config.dataset_dir) == expected


def test_a_job_killed_anywhere_ends_with_the_same_bytes(
    config, tokenizers, expected, files_of, monkeypatch
):
    for place in ("after os.replace", "before removing"):
        for stop in range(0, 60, 7):
            is_killed = was_killed(
                monkeypatch, PLACES[place], stop, lambda: run_job(config, *tokenizers)
            )
            run_job(config, *tokenizers)
            assert files_of(config.dataset_dir) == expected, stop
            shutil.rmtree(config.dataset_dir)
            if not is_killed:
                break
        assert stop


def test_a_changed_container_is_encoded_again(config, tokenizers, expected, files_of, monkeypatch):
    undo = stop_at(monkeypatch, PLACES["after os.replace"], 12, Killed())
    with pytest.raises(Killed):
        run_job(config, *tokenizers)
    undo()
    os.utime(config.source.replace("{00..06}", "01"), ns=(1, 1))
    with pytest.raises(JobError, match=r"1 container changed since the job began \(the first: 01"):
        run_part(config, (0, 2), *tokenizers)
    assert run_job(config, *tokenizers).num_encoded
    assert files_of(config.dataset_dir) == expected
    assert run_job(config, *tokenizers).was_finished
    os.utime(config.source.replace("{00..06}", "04"))
    with pytest.raises(JobError, match=r"1 container of .* changed since this dataset was made"):
        run_job(config, *tokenizers)
    write_tar(config.source.replace("{00..06}", "04"), {"a.png": png_bytes()})
    with pytest.raises(JobError, match=r"sha256 over names, captions and splits of the source: "):
        run_job(config, *tokenizers)
    with pytest.raises(JobError, match=r"containers in the source, listed one by one: 7 there, no"):
        run_job(replace(config, source=config.source.replace("06", "01"), only="images",
                        per_container="no"), *tokenizers)  # fmt: skip


# Columns ------------------------------------------------------------------------------------------


def test_the_first_usable_container_decides_the_columns(config, tokenizers, tars, tmp_path):
    pictures = write_tar(tmp_path / "pictures.tar", {"a.png": png_bytes(1)})
    broken, speech = tars / "02.tar", tars / "06.tar"
    config = replace(config, source=(str(broken), str(pictures), str(tars / "00.tar")))
    result = run_job(config, *tokenizers)
    assert result.manifest.speech_tokenizer is None
    spoken = [reason for file, reason in rejects_of(config.dataset_dir) if "flac" in file]
    assert set(spoken) == {
        "speech, but the first container (pictures.tar) has none and so the dataset has no column "
        "for it; name a container with speech first, or leave it out with --only images"
    }
    assert len(spoken) == 9
    assert len(ShardDataset(config.dataset_dir)) == 10
    config = replace(config, source=(str(speech), str(pictures)), dataset_dir=tmp_path / "speech")
    result = run_job(config, *tokenizers)
    assert result.manifest.image_tokenizer is None
    assert (
        "pictures.tar/a.png",
        "image, but the first container (06.tar) has none and so the dataset has no column for "
        "it; name a container with image first, or leave it out with --only audio",
    ) in rejects_of(config.dataset_dir)


def test_only_one_kind_of_media(config, tokenizers, tmp_path):
    result = run_job(replace(config, only="audio"), *tokenizers)
    assert result.manifest.image_tokenizer is None
    assert result.manifest.settings["source"]["only"] == "audio"
    assert "pictures.tar" not in str(rejects_of(config.dataset_dir))
    result = run_job(replace(config, only="images", dataset_dir=tmp_path / "i"), *tokenizers)
    assert result.manifest.speech_tokenizer is None
    assert not [file for file, _ in rejects_of(tmp_path / "i") if "flac" in file]


# When containers are listed one by one, and how they are grouped ----------------------------------


@pytest.fixture
def many(tmp_path):
    """Pattern of 40 tars of one image."""
    for number in range(40):
        write_tar(tmp_path / f"{number:02d}.tar", {"a.png": png_bytes(number)})
    return f"{tmp_path}/{{00..39}}.tar"


@pytest.mark.parametrize(
    ("source", "settings", "unit"),
    [
        ("{00..39}.tar", {}, "container"),
        ("{00..30}.tar", {}, "input"),
        ("{00..30}.tar", {"per_container": "yes"}, "container"),
        ("{00..39}.tar", {"per_container": "no"}, "input"),
        (["{00..39}.tar", "more"], {}, "input"),
        ("{00..39}.tar", {"audio_root": "more"}, "input"),
    ],
)
def test_many_containers_are_listed_one_by_one(many, tmp_path, source, settings, unit):
    (tmp_path / "more").mkdir()
    write_tar(tmp_path / "more" / "x.tar", {"a.png": png_bytes()})
    shutil.copy(tmp_path / "00.tar", tmp_path / "more" / "a_0.wav")
    names = [source] if isinstance(source, str) else source
    settings = {k: tmp_path / v if k == "audio_root" else v for k, v in settings.items()}
    config = JobConfig(
        source=tuple(f"{tmp_path}/{name}" for name in names), dataset_dir=tmp_path, **settings
    )
    assert list_inputs(config).unit == unit


@pytest.mark.parametrize(
    ("sources", "settings", "match"),
    [
        (["more"], {}, r"--per-container yes: .*more is no tar and no Parquet or Arrow file; leav"),
        (["a.png"], {}, r"--per-container yes: an image or a clip is no tar and no Parquet"),
        (["00.tar"], {"audio_root": "more"}, r"yes: --image-root and --audio-root need all inputs"),
        (["00.tar"], {"columns": ("caption=x",)}, r"00\.tar: --columns caption=x applies to a"),
        (["bad.tar", "bad2.tar"], {}, r"no input of its 2 containers can be used \(the first: bad"),
    ],
)
def test_what_cannot_be_listed_one_by_one_is_refused(many, tmp_path, sources, settings, match):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.png").write_bytes(png_bytes())
    for name in ("bad.tar", "bad2.tar"):
        (tmp_path / name).write_bytes(b"bad")
    settings = {k: tmp_path / v if k == "audio_root" else v for k, v in settings.items()}
    sources = tuple(str(tmp_path / name) for name in sources)
    with pytest.raises(SourceError, match=match):
        list_inputs(
            JobConfig(source=sources, dataset_dir=tmp_path, per_container="yes", **settings)
        )


def test_small_containers_share_shards(many, tmp_path, monkeypatch):
    config = JobConfig(source=many, dataset_dir=tmp_path / "out", samples_per_shard=16)
    inputs = list_inputs(config)
    assert inputs.shards == [range(0, 16), range(16, 32), range(32, 40)]
    assert (inputs.num_media, inputs.expected([0, 5])) == (40, 2)
    write_tar(tmp_path / "07.tar", {"a.png": png_bytes(), "n.md": bytes(180_000)})
    assert list_inputs(config).shards[:3] == [range(0, 7), range(7, 8), range(8, 24)]
    monkeypatch.setattr(job_inputs, "MAX_PARTS", 2)
    assert list_inputs(config).shards == [range(0, 15), range(15, 40)]


def test_keys_that_may_be_equal_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    paths = [str(tmp_path / "x.tar"), str(tmp_path / "x" / "x.tar")]
    for path in paths:
        write_tar(path, {"a.png": png_bytes()})
    assert [one.prefix for one in find_containers(paths)] == [f"{tmp_path.name}/x", "x/x"]
    monkeypatch.setattr(several, "prefixes", lambda _: ["a/b", "a/b/c"])
    with pytest.raises(SourceError, match=r"containers a/b and a/b/c: keys of both may start"):
        find_containers(paths)
    with pytest.raises(SourceError, match=r"gone\.tar: cannot be read: No such file"):
        find_containers([str(tmp_path / "gone.tar")])


def test_memory_of_the_plan_depends_on_the_number_of_containers_alone(tmp_path):
    paths = [f"{tmp_path}/{number:05d}.tar" for number in range(3000)]
    write_tar(tmp_path / "one", {"a.png": png_bytes()})
    for path in paths:
        os.link(tmp_path / "one", path)
    config = JobConfig(source=f"{tmp_path}/*.tar", dataset_dir=tmp_path / "out")
    tracemalloc.start()
    inputs = list_inputs(config)
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size_bytes / len(paths) < 1000
    assert inputs.unit == "container"


def test_the_command_says_how_it_lists(many, tokenize, tmp_path):
    code, out, err = tokenize(many, "--out", tmp_path / "out")
    assert code == 0
    assert (
        "40 containers, listed one by one (--per-container); the first, 00.tar, decides what is "
        "encoded: images\n"
    ) in err
    assert "40/40" in err
    assert out.startswith(f"read      40 inputs of {many} (tar, 40 containers); encoded 40 in")


# Containers in a store ----------------------------------------------------------------------------


@pytest.fixture
def stored(tars):
    """Pattern of the same tars in fsspec's store in memory."""
    store = fsspec.filesystem("memory")
    for path in tars.iterdir():
        store.pipe(f"/bucket/tars/{path.name}", path.read_bytes())
    yield "memory://bucket/tars/{00..06}.tar"
    store.rm("/bucket", recursive=True)


def test_containers_in_a_store(
    config, tokenizers, expected, files_of, stored, tmp_path, monkeypatch
):
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    config = replace(config, source=stored, per_container="auto")
    run_job(config, *tokenizers)
    assert files_of(config.dataset_dir) == expected
    assert list(copies.iterdir()) == []
    folder = replace(config, source="memory://bucket/tars", dataset_dir=tmp_path / "folder")
    run_job(folder, *tokenizers)
    assert files_of(folder.dataset_dir) == expected


def test_a_container_that_is_missing_is_found_before(config, tokenizers, stored):
    config = replace(config, source=stored.replace("06", "07"))
    with pytest.raises(SourceError, match=r"^memory://bucket/tars/07\.tar: no such file; check th"):
        run_job(config, *tokenizers)
    with pytest.raises(SourceError, match=r"is not read from a store together with other kinds"):
        run_job(replace(config, source=stored, per_container="no"), *tokenizers)
    assert not config.dataset_dir.exists()


def test_containers_on_a_web_server(config, tokenizers, tars, expected, files_of, monkeypatch):
    monkeypatch.setattr("im2sp.shards.stores.RETRY_WAITS_S", (0, 0, 0))
    with web_server() as site:
        for path in tars.iterdir():
            site.files[f"tars/{path.name}"] = path.read_bytes()
        site.faults["GET tars/01.tar"] = ["cut", 503]
        url = f"{site.url.replace('://', '://user:secret@')}/tars/{{00..06}}.tar?key=secret"
        config = replace(config, source=url, per_container="auto")
        run_job(config, *tokenizers)
    assert files_of(config.dataset_dir) == expected


def test_a_container_that_cannot_be_copied_is_a_reject(config, tokenizers, tars, monkeypatch):
    monkeypatch.setattr("im2sp.shards.stores.RETRY_WAITS_S", ())
    with web_server() as site:
        for path in tars.iterdir():
            site.files[f"tars/{path.name}"] = path.read_bytes()
        site.faults["GET tars/04.tar"] = [503]
        url = f"{site.url}/tars/{{00..06}}.tar?key=secret"
        run_job(replace(config, source=url), *tokenizers)
    assert ("04.tar", "cannot be read: status 503") in rejects_of(config.dataset_dir)


@pytest.mark.s3
def test_containers_in_s3(bucket, config, tokenizers, tars, expected, files_of):
    store = fsspec.filesystem("s3")
    for path in tars.iterdir():
        store.put_file(str(path), f"{bucket.url}/tars/{path.name}")
    bucket.site.faults[f"GET {bucket.url[5:]}/tars/01.tar"] = [503, "cut"]
    run_job(replace(config, source=f"{bucket.url}/tars/*.tar", per_container="auto"), *tokenizers)
    assert files_of(config.dataset_dir) == expected


def test_a_full_disk_of_copies_ends_the_run_and_refuses_nothing(
    config, tokenizers, expected, files_of, stored, monkeypatch
):
    config = replace(config, source=stored)
    store, calls = type(fsspec.filesystem("memory")), iter(range(99))
    get_file = store.get_file

    def get(self, remote, local, **options):
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return get_file(self, remote, local, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "get_file", get)
        with pytest.raises(
            JobError, match=r": No space left on device for a copy of 03\.tar; free"
        ):
            run_job(config, *tokenizers)
    run_job(config, *tokenizers)
    assert files_of(config.dataset_dir) == expected


def test_a_local_container_that_vanishes_ends_the_run(config, tokenizers, tars, expected, files_of):
    encode, path = tokenizers[0].encode_uint8, tars / "04.tar"

    def move_away(images):
        if path.exists():
            path.rename(tars / "moved")
        return encode(images)

    tokenizers[0].encode_uint8 = move_away
    with pytest.raises(
        JobError, match=r"04\.tar: missing on .*; the source needs the same path on"
    ):
        run_job(config, *tokenizers)
    (tars / "moved").rename(path)
    del tokenizers[0].encode_uint8
    run_job(config, *tokenizers)
    assert files_of(config.dataset_dir) == expected
