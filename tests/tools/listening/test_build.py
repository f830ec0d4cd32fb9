import json
import random

import numpy as np
import pytest
import soundfile
from PIL import Image

from im2sp.tools.listening import build as listening_build
from im2sp.tools.listening.build import build, read_reference
from im2sp.tools.listening_test import main
from support.listening import KEYS, photo, save_reference, save_spoken, tone

SYSTEMS = ("fancysystem", "plainsystem")


@pytest.fixture
def folders(tmp_path):
    return [(name, save_spoken(tmp_path / name, 300 + 200 * i)) for i, name in enumerate(SYSTEMS)]


@pytest.fixture
def reference(tmp_path):
    return ("people", save_reference(tmp_path / "wavs"))


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_sample_is_there_once_and_sounds_as_its_system(folders, reference, tmp_path):
    out = tmp_path / "new" / "test"
    built = build(folders, reference, out=out, num_images=3, seed=4)
    assert (built.num_samples, built.num_images, built.num_systems) == (9, 3, 3)
    assert built.num_common == 4
    key = json.loads((out / "key.json").read_text())
    assert key["systems"] == ["people", *SYSTEMS]
    assert (key["reference"], key["seed"], key["test"]) == ("people", 4, built.test)
    images = {row["image"] for row in key["samples"].values()}
    pairs = {(row["system"], row["image"]) for row in key["samples"].values()}
    assert pairs == {(system, image) for system in key["systems"] for image in images}
    media = out / "page/media"
    assert {path.stem for path in media.glob("*.wav")} == set(key["samples"])
    assert len(list(media.glob("*.jpg"))) == 3
    for sample, row in key["samples"].items():
        info = soundfile.info(media / f"{sample}.wav")
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.extra_info.count("Software") == 0
        samples, _ = soundfile.read(media / f"{sample}.wav", dtype="int16")
        if row["system"] == "people":
            names = {"a": "a", "b": "b_0", "deep/c & <i>": "c & <i>", "d": "d_2"}
            assert row["wav"] == f"{names[row['image']]}.wav"
            assert len(samples) == 1600
        else:
            pitch_hz = 300 + 200 * SYSTEMS.index(row["system"]) + 10 * KEYS.index(row["image"])
            assert np.array_equal(samples, tone(pitch_hz))  # to the last bit


def test_the_page_is_blind(folders, reference, tmp_path):
    out = tmp_path / "test"
    build(folders, reference, out=out, num_images=4, seed=0)
    page = contents(out / "page")
    assert len(page) == 1 + 12 + 4
    secrets = [*SYSTEMS, "people", "deep/c", "the reference", str(tmp_path)]
    for name, data in page.items():
        text = name.encode() + data
        assert not [secret for secret in secrets if secret.encode() in text], name
    html = page["index.html"].decode()
    assert "http" not in html
    data = html.partition('id="test">')[2].partition("</script>")[0]
    samples = json.loads(data)["samples"]
    assert [one["id"] for one in samples] == sorted(one["id"] for one in samples)
    order = json.loads((out / "key.json").read_text())["samples"]
    systems = [order[one["id"]]["system"] for one in samples]
    assert systems != sorted(systems, key=systems.index)  # not in blocks


def test_the_page_says_how_large_its_pictures_are(folders, tmp_path):
    build(folders, None, out=tmp_path / "test", num_images=1, seed=0)
    html = (tmp_path / "test/page/index.html").read_text()
    assert '"width_px": 48, "height_px": 32' in html


def test_the_same_input_and_seed_give_the_same_bytes(folders, reference, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        build(folders, reference, out=tmp_path / name, num_images=2, seed=seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not set(contents(tmp_path / "one/page/media")) & set(
        contents(tmp_path / "other/page/media")
    )


def guesses(page, num_systems):
    """Seeds from 0 to 19 that explain the page's names, by this version and version 0.1."""
    samples = json.loads(page.partition('id="test">')[2].partition("</script>")[0])["samples"]
    ids = {one["id"] for one in samples}
    num_images = len(ids) // num_systems
    found = []
    for seed in range(20):
        generated = listening_build._names(seed, len(ids) + num_images)
        if set(generated[num_images:]) == ids:
            found.append(seed)
        for num_common in range(num_images, 50):
            generator = random.Random(seed)
            generator.sample(range(num_common), num_images)
            old = {f"{generator.getrandbits(48):012x}" for _ in range(len(ids) + num_images)}
            if ids <= old:
                found.append(seed)
    return found


def test_the_page_alone_does_not_group_samples_by_system(folders, tmp_path):
    args = ["build", *(f"{name}={folder}" for name, folder in folders), "--num-images", "3"]
    seeds = set()
    for name in ("one", "two"):
        assert main([*args, "--out", str(tmp_path / name)]) == 0
        assert guesses((tmp_path / name / "page/index.html").read_text(), 2) == []
        seeds.add(json.loads((tmp_path / name / "key.json").read_text())["seed"])
    assert len(seeds) == 2
    assert max(seeds) > 2**64
    assert main([*args, "--out", str(tmp_path / "known"), "--seed", "7"]) == 0
    assert guesses((tmp_path / "known/page/index.html").read_text(), 2) == [7]


def test_a_folder_is_one_system(folders, reference, tmp_path):
    name, folder = folders[0]
    (tmp_path / "link").symlink_to(folder)
    for given, other in (
        ([folders[0], ("again", folder)], None),
        ([*folders, ("again", tmp_path / "link")], reference),
        (folders, ("again", folder)),
    ):
        with pytest.raises(ValueError, match=rf"again=.*: the folder of {name}, too; give each"):
            build(given, other, out=tmp_path / "test", num_images=2)


def test_another_sound_is_another_test(folders, tmp_path):
    first = build(folders, None, out=tmp_path / "one", num_images=4, seed=0)
    save_spoken(tmp_path / SYSTEMS[0], 301)
    second = build(folders, None, out=tmp_path / "two", num_images=4, seed=0)
    assert first.test != second.test


def test_pictures_come_from_any_system_that_has_them(folders, tmp_path):
    units = ("units", save_spoken(tmp_path / "units", 900, KEYS[1:], pictures=False))
    built = build([units, folders[0]], None, out=tmp_path / "test", num_images=3, seed=0)
    assert built.num_common == 3
    with pytest.raises(ValueError, match="--num-images 3: 0 images with a file are in all"):
        build([units], None, out=tmp_path / "other", num_images=3, seed=0)


def test_a_picture_saved_twice_is_the_same_one(folders, tmp_path):
    for i, path in enumerate(sorted((tmp_path / SYSTEMS[1]).glob("*.jpg"))):
        Image.open(path).save(path, quality=60)
        assert i < 4
    build(folders, None, out=tmp_path / "test", num_images=4, seed=0)


def test_another_picture_under_the_same_key_is_refused(folders, tmp_path):
    photo(77).save(tmp_path / SYSTEMS[1] / "b.jpg")
    with pytest.raises(ValueError, match=r"plainsystem.b\.jpg: another image than .*the key"):
        build(folders, None, out=tmp_path / "test", num_images=4, seed=0)
    assert not list(tmp_path.glob("test*"))


def test_references_are_found_by_image_name(tmp_path):
    folder = save_reference(tmp_path / "wavs", ("x_2", "x_10", "y", "y_0", "a/z", "b/z_1"))
    found = read_reference("people", folder, ["x", "k/y", "a/z", "b/z", "none"]).sounds
    named = {key: path.relative_to(folder).as_posix() for key, path in found.items()}
    assert named == {"x": "x_2.wav", "k/y": "y.wav", "a/z": "a/z.wav", "b/z": "b/z_1.wav"}


def test_too_few_common_images(folders, reference, tmp_path):
    (reference[1] / "a.wav").unlink()
    with pytest.raises(ValueError, match=r"--num-images 4: 3 images .*people 3, fancysystem 4"):
        build(folders, reference, out=tmp_path / "test", num_images=4, seed=0)


def test_nothing_is_written_over(folders, tmp_path, capsys):
    args = ["build", *(f"{name}={folder}" for name, folder in folders), "--num-images", "2"]
    args += ["--out", str(tmp_path / "test")]
    (tmp_path / "test").mkdir()  # an empty folder may be filled
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "4 samples, 2 of 4 common images by 2 systems" in shown
    assert "key.json: do not give it to the listeners" in shown
    before = contents(tmp_path / "test")
    assert main(args) == 1
    told = capsys.readouterr().err
    assert "test: exists; a listening test is never overwritten" in told
    assert told.count("\n") == 1
    assert contents(tmp_path / "test") == before


def test_what_cannot_be_finished_leaves_nothing(folders, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(listening_build, "page", full)
    with pytest.raises(OSError, match="no space"):
        build(folders, None, out=tmp_path / "test", num_images=2, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SYSTEMS)
    for name in ("test.im2sp-0123abcd.tmp", "other.im2sp-0123abcd.tmp"):
        (tmp_path / name / "page").mkdir(parents=True)
    monkeypatch.undo()
    build(folders, None, out=tmp_path / "test", num_images=2, seed=0)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*SYSTEMS, "other.im2sp-0123abcd.tmp", "test"])


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "index.html").unlink(), "holds no index.html, so im2sp-speak did not"),
        (lambda d: (d / "spoken.jsonl").unlink(), "holds no spoken.jsonl"),
        (lambda d: (d / "a.wav").unlink(), r"a\.wav: missing, but spoken\.jsonl lists it"),
        (lambda d: cut(d / "a.wav"), r"a\.wav: cut"),
        (lambda d: cut(d / "a.jpg"), r"a\.jpg: .*cut or damaged"),
        (lambda d: (d / "spoken.jsonl").write_text('{"key": "a"}\n'), r"spoken\.jsonl:1: expected"),
        (lambda d: (d / "spoken.jsonl").write_text("[]\n"), r"spoken\.jsonl:1: expected a row"),
        (lambda d: (d / "spoken.jsonl").write_bytes(b'"\xff'), r"spoken\.jsonl:1: expected a row"),
        (
            lambda d: (d / "spoken.jsonl").write_text('{"key": [], "wav": "a.wav"}'),
            r"spoken\.jsonl:1: expected a row with key and wav",
        ),
    ],
)
def test_folders_that_are_refused(folders, tmp_path, damage, message):
    damage(folders[0][1])
    with pytest.raises(ValueError, match=message):
        build(folders, None, out=tmp_path / "test", num_images=4, seed=0)
    assert not list(tmp_path.glob("test*"))


def test_names_and_folders_that_are_refused(folders, tmp_path):
    options = {"out": tmp_path / "test", "num_images": 2, "seed": 0}
    with pytest.raises(ValueError, match="fancysystem: two systems have this name"):
        build([folders[0], folders[0]], None, **options)
    with pytest.raises(ValueError, match="x=.*none: no such folder; give an output folder"):
        build([("x", tmp_path / "none")], None, **options)
    with pytest.raises(ValueError, match="--reference x=.*none: no such folder"):
        build(folders, ("x", tmp_path / "none"), **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--reference x=.*: no wav file; expected x\.wav"):
        build(folders, ("x", tmp_path / "empty"), **options)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Expected one of {build, score}"),
        (["build", "a", "--out", "x"], "'a'; expected NAME=FOLDER"),
        (["build", "=a", "--out", "x"], "'=a'; expected NAME=FOLDER"),
        (["build", "a=b"], "--out"),
        (
            ["build", "a=b", "--out", "x", "--num-images", "0"],
            "--num-images is 0; expected at least 1",
        ),
        (["score", "key.json"], "no files of answers"),
    ],
)
def test_wrong_usage_is_exit_code_2(args, message, capsys):
    assert main(args) == 2
    assert message in capsys.readouterr().err
