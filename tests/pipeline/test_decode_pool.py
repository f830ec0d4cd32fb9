import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from im2sp.pipeline import decode as decode_module
from im2sp.pipeline import decode_pool
from im2sp.pipeline.audio import read_audio
from im2sp.pipeline.decode import decode
from im2sp.pipeline.decode_pool import DecodePool
from im2sp.pipeline.decode_room import Room
from im2sp.pipeline.images import ByteRange
from im2sp.pipeline.source_items import SourceItem, Utterance

VIEW = "squash-224"
MAX_PIXELS = 10_000

# A picture whose decoder crashes, every time or until a file is there. The workers import it.
BOMBS = """
import os, signal
from pathlib import Path

class Bomb(type(Path())):
    def __fspath__(self):
        os.kill(os.getpid(), signal.SIGKILL)

class OneBomb(type(Path())):
    def __fspath__(self):
        path = str(self)
        if not os.path.exists(path + ".exploded"):
            open(path + ".exploded", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return path
"""


# What someone writes who does not know that processes import the main module again.
UNGUARDED = """
from pathlib import Path
from im2sp.pipeline.decode_pool import DecodePool
from im2sp.pipeline.source_items import SourceItem

item = SourceItem(key="a", image=Path("a.jpg"), name="a.jpg")
with DecodePool(num_workers=2, view="squash-224", max_pixels=10_000) as pool:
    print(list(pool.decode([[item]])))
"""


@pytest.fixture
def bombs(tmp_path, monkeypatch):
    (tmp_path / "im2sp_test_bombs.py").write_text(BOMBS)
    monkeypatch.syspath_prepend(tmp_path)
    return __import__("im2sp_test_bombs")


@pytest.fixture
def starts(monkeypatch):
    """Counts how often a process is started."""
    started = []
    start = decode_pool._start
    monkeypatch.setattr(decode_pool, "_start", lambda *args: started.append(1) or start(*args))
    return started


def item(path, name=None):
    return SourceItem(key=str(path), image=path, name=name or getattr(path, "name", ""))


def pool_of(num_workers):
    return DecodePool(num_workers=num_workers, view=VIEW, max_pixels=MAX_PIXELS)


def tasks_of(items, size=4):
    return [items[start : start + size] for start in range(0, len(items), size)]


def check_equal(found, expected):
    assert [result.reason for result in found] == [result.reason for result in expected]
    assert [result.size_bytes for result in found] == [result.size_bytes for result in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.waveform, other.waveform)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order_and_are_what_decode_gives(draw, tmp_path, num_workers):
    items = [item(path) for path in sorted(draw(tmp_path, 50, broken=[3, 20]).iterdir())]
    items.insert(7, SourceItem(key="x", image=None, name="x", error="its row is broken"))
    items.insert(9, item(tmp_path / "missing.jpg"))
    with pool_of(num_workers) as pool:
        found = list(pool.decode(tasks_of(items)))
    check_equal(found, [decode(one, VIEW, MAX_PIXELS) for one in items])
    assert sum(result.pixels is not None for result in found) == 48
    assert multiprocessing.active_children() == []


def test_reasons_do_not_repeat_the_name(draw, tmp_path):
    draw(tmp_path, 1, broken=[0])
    reason = decode(item(tmp_path / "000.png"), VIEW, MAX_PIXELS).reason
    assert reason
    assert "000.png" not in reason


def test_whatever_a_view_raises_is_a_reject(draw, tmp_path, monkeypatch):
    draw(tmp_path, 1)

    class Broken:
        def apply(self, image):
            raise ZeroDivisionError("no\nsuch thing")

    monkeypatch.setitem(decode_module.VIEWS, VIEW, Broken())
    result = decode(item(tmp_path / "000.png"), VIEW, MAX_PIXELS)
    assert result.pixels is None
    assert result.reason == "cannot be decoded: ZeroDivisionError: no such thing"


def test_a_file_that_goes_away_is_a_reject(draw, tmp_path, monkeypatch):
    draw(tmp_path, 1)

    def vanished(image):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(decode_module, "source_size_bytes", vanished)
    result = decode(item(tmp_path / "000.png"), VIEW, MAX_PIXELS)
    assert result.reason == "cannot be read: No such file or directory"


def test_a_decoder_that_crashes_costs_its_picture_and_no_other(draw, tmp_path, bombs, starts):
    items = [item(path) for path in sorted(draw(tmp_path / "p", 24).iterdir())]
    for at in (5, 6):
        items[at] = item(bombs.Bomb(str(tmp_path / "bomb.png")))
    with pool_of(2) as pool:
        found = list(pool.decode(tasks_of(items, 8)))
    assert [i for i, result in enumerate(found) if result.pixels is None] == [5, 6]
    assert "died twice" in found[5].reason
    # Two workers, and two more for each of the crashing pictures.
    assert len(starts) <= 2 + 2 * 2
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_once_costs_nothing(draw, tmp_path, bombs):
    paths = sorted(draw(tmp_path / "p", 6).iterdir())
    items = [item(path) for path in paths]
    expected = [decode(one, VIEW, MAX_PIXELS) for one in items]
    items[4] = item(bombs.OneBomb(str(paths[4])), name=paths[4].name)
    with pool_of(1) as pool:
        check_equal(list(pool.decode([items])), expected)


def test_a_pool_that_cannot_start_says_so(draw, tmp_path, monkeypatch):
    items = [item(path) for path in sorted(draw(tmp_path, 3).iterdir())]
    monkeypatch.setattr(decode_pool, "_work", "".format)  # ends at once
    with (
        pool_of(2) as pool,
        pytest.raises(ChildProcessError, match=r"could not start \(exit status 0\).*__main__"),
    ):
        list(pool.decode([items]))


def test_leaving_early_ends_the_workers(draw, tmp_path):
    items = [item(path) for path in sorted(draw(tmp_path, 30).iterdir())]
    with pool_of(2) as pool:
        next(pool.decode(tasks_of(items)))
        assert len(multiprocessing.active_children()) >= 1
    assert multiprocessing.active_children() == []


def test_leaving_at_once_ends_workers_that_are_starting():
    with pool_of(2) as pool:
        pool.start()
    assert multiprocessing.active_children() == []


def test_a_pool_without_tasks_starts_nothing(starts):
    with pool_of(2) as pool:
        assert list(pool.decode([])) == []
    assert starts == []


def test_workers_leave_ctrl_c_to_the_parent(draw, tmp_path):
    items = [item(path) for path in sorted(draw(tmp_path, 8).iterdir())]
    with pool_of(1) as pool:
        results = pool.decode(tasks_of(items))
        first = next(results)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT)
        found = [first, *results]
    assert all(result.pixels is not None for result in found)


def test_decoding_runs_a_bounded_number_of_tasks_ahead(draw, tmp_path):
    items = [item(path) for path in sorted(draw(tmp_path, 40).iterdir())]
    taken = 0

    def tasks():
        nonlocal taken
        for one in items:
            taken += 1
            yield [one]

    with pool_of(1) as pool:
        next(pool.decode(tasks()))
    assert taken == decode_pool._TASKS_AHEAD


def test_members_of_a_tar_are_read_in_place(draw, tmp_path):
    picture = sorted(draw(tmp_path / "p", 1).iterdir())[0]
    data = picture.read_bytes()
    holder = tmp_path / "holder"
    holder.write_bytes(b"x" * 77 + data + b"y")
    place = ByteRange(path=holder, offset=77, size_bytes=len(data))
    found = decode(item(place, "member"), VIEW, MAX_PIXELS)
    check_equal([found], [decode(item(picture), VIEW, MAX_PIXELS)])


# Sound --------------------------------------------------------------------------------------------


def clip(path):
    return Utterance(audio=path, name=path.name)


def test_pictures_and_clips_come_in_order(draw, speak, tmp_path):
    draw(tmp_path, 6, broken=[2])
    speak(tmp_path, "a.wav", "b.flac", "c.flac", "d.wav", seconds=1, broken=["c.flac"])
    speak(tmp_path, "long.wav", seconds=60)
    pictures = [item(path) for path in sorted(tmp_path.glob("*.png"))]
    clips = [clip(path) for path in sorted(tmp_path.iterdir()) if path.suffix != ".png"]
    clips.append(Utterance(audio=None, name="x", error="no such audio file"))
    media = [medium for pair in zip(pictures, clips, strict=True) for medium in pair]
    with pool_of(2) as pool:
        found = list(pool.decode(tasks_of(media)))
    check_equal(found, [decode(medium, VIEW, MAX_PIXELS) for medium in media])
    assert sum(result.waveform is not None for result in found) == 4
    assert found[-1].reason == "no such audio file"
    expected = read_audio(tmp_path / "long.wav", name="x")
    assert expected.nbytes > 2 * decode_pool._PIECE_BYTES
    np.testing.assert_array_equal(found[9].waveform, expected)


def test_reasons_do_not_repeat_the_name_of_a_clip(speak, tmp_path):
    name = "a\nb.wav"
    speak(tmp_path, name, broken=[name])
    result = decode(clip(tmp_path / name), VIEW, MAX_PIXELS)
    assert result.reason.startswith("cut: ")
    assert "b.wav" not in result.reason


def test_clips_over_the_limit_are_refused(speak, tmp_path):
    speak(tmp_path, "a.wav", seconds=4)
    assert decode(clip(tmp_path / "a.wav"), VIEW, MAX_PIXELS, 1.5).reason.endswith(
        "over the limit of 1.5 s"
    )


def test_an_utterance_without_audio_is_refused():
    assert decode(Utterance(audio=None, name="x"), VIEW, MAX_PIXELS).reason == "no audio"


def test_a_clip_whose_decoder_crashes_is_refused(speak, tmp_path, bombs):
    paths = sorted(speak(tmp_path, "a.wav", "b.wav", "c.wav").iterdir())
    clips = [clip(path) for path in paths]
    expected = [decode(one, VIEW, MAX_PIXELS) for one in clips]
    clips[1] = Utterance(audio=bombs.OneBomb(str(paths[1])), name="b.wav")
    clips.append(Utterance(audio=bombs.Bomb(str(paths[2])), name="bomb"))
    with pool_of(1) as pool:
        *found, bomb = pool.decode([clips])
    check_equal(found, expected)
    assert "died twice" in bomb.reason


class WatchedRoom(Room):
    """Remembers the most that it held."""

    most = 0

    def enter(self, task, size_bytes):
        super().enter(task, size_bytes)
        self.most = max(self.most, self._held_bytes)


def test_waiting_sound_is_bounded(speak, tmp_path, monkeypatch):
    names = [f"{i:02d}.wav" for i in range(24)]
    clips = [clip(path) for path in sorted(speak(tmp_path, *names).iterdir())]
    sizes = [read_audio(one.audio, name="x").nbytes for one in clips]
    with pool_of(3) as pool:
        room = pool._room = WatchedRoom(2 * max(sizes))
        found = [result.waveform.nbytes for result in pool.decode(tasks_of(clips, 3))]
    assert found == sizes
    assert room.most <= 3 * max(sizes)
    assert room._held_bytes == 0


def test_clips_larger_than_the_room_go_through_one_by_one(speak, tmp_path):
    names = [f"{i:02d}.wav" for i in range(9)]
    clips = [clip(path) for path in sorted(speak(tmp_path, *names).iterdir())]
    with pool_of(2) as pool:
        room = pool._room = WatchedRoom(1000)
        found = list(pool.decode(tasks_of(clips, 3)))
    check_equal(found, [decode(one, VIEW, MAX_PIXELS) for one in clips])
    assert room.most == max(result.waveform.nbytes for result in found)


def test_leaving_early_ends_workers_that_wait_for_room(speak, tmp_path):
    names = [f"{i:02d}.wav" for i in range(12)]
    clips = [clip(path) for path in sorted(speak(tmp_path, *names).iterdir())]
    with pool_of(2) as pool:
        pool._room = Room(1000)
        next(pool.decode(tasks_of(clips, 2)))
    assert multiprocessing.active_children() == []


def test_an_unguarded_program_is_told_and_does_not_hang(tmp_path):
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    command = [sys.executable, "-P", str(tmp_path / "unguarded.py")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert 'does what it runs stand under `if __name__ == "__main__":`?' in found.stderr
