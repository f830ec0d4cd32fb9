import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from im2sp.pipeline.decoding.audio import read_audio
from im2sp.pipeline.decoding.images import ByteRange
from im2sp.pipeline.job import decode_pool
from im2sp.pipeline.job.decode_pool import DecodePool, decode
from im2sp.pipeline.sources.items import SourceItem, Utterance
from support import hostile

VIEW = "squash-224"
MAX_PIXELS = 10_000

# A program of someone who does not know that spawned processes import the main module again.
UNGUARDED = """
from pathlib import Path
from im2sp.pipeline.job.decode_pool import DecodePool
from im2sp.pipeline.sources.items import SourceItem

item = SourceItem(key="a", image=Path("a.jpg"), name="a.jpg")
with DecodePool(num_workers=2, view="squash-224", max_pixels=10_000) as pool:
    print(list(pool.decode([item])))
"""


@pytest.fixture
def starts(monkeypatch):
    """Counts how often a process is started."""
    started = []
    start = decode_pool._Worker.start
    monkeypatch.setattr(decode_pool._Worker, "start", lambda self: started.append(1) or start(self))
    return started


def item(path, name=None):
    return SourceItem(key=str(path), image=path, name=name or getattr(path, "name", ""))


def items_of(folder):
    return [item(path) for path in sorted(folder.iterdir())]


def clip(path):
    return Utterance(audio=path, name=path.name)


def pool_of(num_workers, **settings):
    return DecodePool(num_workers=num_workers, view=VIEW, max_pixels=MAX_PIXELS, **settings)


def expected_of(media):
    return [decode(medium, VIEW, MAX_PIXELS) for medium in media]


def check_equal(found, expected):
    assert [result.reason for result in found] == [result.reason for result in expected]
    assert [result.size_bytes for result in found] == [result.size_bytes for result in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.waveform, other.waveform)


# One decode ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["000.png", "a\nb.png"])
def test_reasons_do_not_repeat_the_name(draw, tmp_path, name):
    draw(tmp_path, 1, broken=[0])
    (tmp_path / "000.png").rename(tmp_path / name)
    reason = decode(item(tmp_path / name), VIEW, MAX_PIXELS).reason
    assert reason
    assert ".png" not in reason


def test_reasons_do_not_repeat_the_name_of_a_clip(speak, tmp_path):
    name = "a\nb.wav"
    speak(tmp_path, name, broken=[name])
    result = decode(clip(tmp_path / name), VIEW, MAX_PIXELS)
    assert result.reason.startswith("cut: ")
    assert "b.wav" not in result.reason


def test_an_exception_of_a_view_is_a_reject(draw, tmp_path, monkeypatch):
    draw(tmp_path, 1)

    class Broken:
        def apply(self, image):
            raise ZeroDivisionError("no\nsuch thing")

    monkeypatch.setitem(decode_pool.VIEWS, VIEW, Broken())
    result = decode(item(tmp_path / "000.png"), VIEW, MAX_PIXELS)
    assert result.pixels is None
    assert result.reason == "cannot be decoded: ZeroDivisionError: no such thing"


def test_a_lost_file_or_lack_of_memory_is_a_reject(draw, tmp_path, monkeypatch):
    draw(tmp_path, 1)
    assert decode(item(tmp_path / "001.png"), VIEW, MAX_PIXELS).reason == (
        "cannot be read: No such file or directory"
    )

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(decode_pool, "read_bytes", fail)
    reason = "decoding needs more memory than there is"
    assert decode(item(tmp_path / "000.png"), VIEW, MAX_PIXELS).reason == reason


def test_members_of_a_tar_are_read_in_place(draw, tmp_path):
    (image,) = sorted(draw(tmp_path / "p", 1).iterdir())
    data = image.read_bytes()
    holder = tmp_path / "holder"
    holder.write_bytes(b"x" * 77 + data + b"y")
    place = ByteRange(path=holder, offset=77, size_bytes=len(data))
    check_equal(expected_of([item(place, "member")]), expected_of([item(image)]))


def test_clips_over_the_limit_are_refused(speak, tmp_path):
    speak(tmp_path, "a.wav", seconds=4)
    reason = decode(clip(tmp_path / "a.wav"), VIEW, MAX_PIXELS, 1.5).reason
    assert reason.endswith("over the limit of 1.5 s")


def test_an_utterance_without_audio_is_refused():
    assert decode(Utterance(audio=None, name="x"), VIEW, MAX_PIXELS).reason == "no audio"


# Order and bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order_and_are_what_decode_gives(draw, tmp_path, num_workers):
    items = items_of(draw(tmp_path, 50, broken=[3, 20]))
    items.insert(7, SourceItem(key="x", image=None, name="x", error="its row is broken"))
    items.insert(9, item(tmp_path / "missing.jpg"))
    with pool_of(num_workers) as pool:
        found = list(pool.decode(items))
    check_equal(found, expected_of(items))
    assert sum(result.pixels is not None for result in found) == 48
    assert multiprocessing.active_children() == []


def test_images_and_clips_come_in_order(draw, speak, tmp_path):
    draw(tmp_path, 6, broken=[2])
    speak(tmp_path, "a.wav", "b.flac", "c.flac", "d.wav", seconds=1, broken=["c.flac"])
    speak(tmp_path, "long.wav", seconds=60)
    images = [item(path) for path in sorted(tmp_path.glob("*.png"))]
    clips = [clip(path) for path in sorted(tmp_path.iterdir()) if path.suffix != ".png"]
    clips.append(Utterance(audio=None, name="x", error="no such audio file"))
    media = [medium for pair in zip(images, clips, strict=True) for medium in pair]
    with pool_of(2) as pool:
        found = list(pool.decode(media))
    check_equal(found, expected_of(media))
    assert sum(result.waveform is not None for result in found) == 4
    assert found[-1].reason == "no such audio file"
    np.testing.assert_array_equal(found[9].waveform, read_audio(tmp_path / "long.wav", name="x"))


def test_a_bounded_number_of_media_is_taken_ahead(draw, tmp_path):
    items = items_of(draw(tmp_path, 90))
    taken = []
    with pool_of(1) as pool:
        next(pool.decode(one for one in items if not taken.append(one)))
    assert len(taken) == decode_pool._TASKS_PER_WORKER * decode_pool.IMAGES_PER_TASK


class WatchedPool(DecodePool):
    """Remembers the most audio that waited."""

    most_bytes = 0

    def _on_done(self, task, future):
        super()._on_done(task, future)
        self.most_bytes = max(self.most_bytes, self._waiting_bytes)


@pytest.mark.parametrize(("num_workers", "num_allowed"), [(3, 2), (2, 0)])
def test_waiting_audio_is_bounded(speak, tmp_path, monkeypatch, num_workers, num_allowed):
    """If no clip is allowed to wait, clips are still decoded one after the other."""
    speak(tmp_path, *[f"{i:02d}.wav" for i in range(24)])
    clips = [clip(path) for path in sorted(tmp_path.iterdir())]
    expected = expected_of(clips)
    largest = max(one.waveform.nbytes for one in expected)
    monkeypatch.setattr(decode_pool, "MAX_WAITING_BYTES", num_allowed * largest)
    with WatchedPool(num_workers=num_workers, view=VIEW, max_pixels=MAX_PIXELS) as pool:
        check_equal(list(pool.decode(clips)), expected)
    assert pool.most_bytes <= (num_allowed + num_workers + 1) * largest
    assert pool._waiting_bytes == 0


# Crashes and time limits --------------------------------------------------------------------------


def test_a_decoder_that_crashes_costs_its_image_and_no_other(draw, tmp_path, starts):
    items = items_of(draw(tmp_path, 24))
    for at in (5, 6):
        items[at] = item(hostile.Killed("bomb.png"))
    with pool_of(2) as pool:
        found = list(pool.decode(items))
    assert [i for i, result in enumerate(found) if result.pixels is None] == [5, 6]
    assert "died twice" in found[5].reason
    # Two workers; one for the death of the task, and one for each image that kills again.
    assert len(starts) <= 2 + 3
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_once_costs_nothing(draw, speak, tmp_path):
    images = items_of(draw(tmp_path / "p", 6))
    clips = [clip(path) for path in sorted(speak(tmp_path / "s", "a.wav", "b.wav").iterdir())]
    expected = expected_of([*images, *clips])
    images[4] = item(hostile.KilledOnce(images[4].image))
    clips[0] = clip(hostile.KilledOnce(clips[0].audio))
    with pool_of(1) as pool:
        check_equal(list(pool.decode([*images, *clips])), expected)


@pytest.mark.parametrize("kind", [hostile.Endless, hostile.Stopped])
def test_a_decode_over_the_time_limit_is_refused_and_no_other(draw, speak, tmp_path, kind):
    images = items_of(draw(tmp_path / "p", 12))
    clips = [clip(path) for path in sorted(speak(tmp_path / "s", "a.wav", "b.wav").iterdir())]
    images[3], clips[0] = item(kind("x.png")), clip(kind("x.wav"))
    with pool_of(1, timeout_s=0.5) as pool:
        found = list(pool.decode([*images, *clips]))
    reason = "decoding takes longer than the time limit of 0.5 s"
    assert [i for i, one in enumerate(found) if one.reason] == [3, 12]
    assert [one.reason for one in found if one.reason] == [reason, reason]
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_stopped_once_costs_nothing(draw, tmp_path):
    """As a computer that was suspended: the time limit passes without a fault of the file."""
    images = items_of(draw(tmp_path, 3))
    expected = expected_of(images)
    images[1] = item(hostile.StoppedOnce(images[1].image))
    with pool_of(1, timeout_s=0.5) as pool:
        check_equal(list(pool.decode(images)), expected)


def test_an_idle_worker_that_dies_is_replaced(draw, tmp_path):
    images = items_of(draw(tmp_path, 30))
    taken = []

    def source():
        for i, one in enumerate(images):
            if i == 20:  # all of the first tasks are consumed, and nothing is running
                (worker,) = multiprocessing.active_children()
                worker.kill()
                worker.join()
            taken.append(i)
            yield one

    with pytest.MonkeyPatch.context() as patch, pool_of(1) as pool:
        patch.setattr(decode_pool, "_TASKS_PER_WORKER", 1)
        check_equal(list(pool.decode(source())), expected_of(images))


def test_a_worker_that_dies_holding_the_pipe_costs_nothing(draw, tmp_path, monkeypatch):
    images = items_of(draw(tmp_path, 20))
    expected = expected_of(images)
    monkeypatch.setattr(decode_pool, "_MAX_SILENCE_S", 1)
    monkeypatch.setattr(decode_pool, "_decode_all", hostile.decode_and_die_in_the_pipe)
    with pool_of(1, timeout_s=2) as pool:
        check_equal(list(pool.decode(images)), expected)
    assert multiprocessing.active_children() == []


def test_workers_that_cannot_start_are_an_error(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_pool, "_silence", sys.exit)  # the exit status is 1
    with (
        pool_of(2) as pool,
        pytest.raises(ChildProcessError, match="could not start; is there memory left"),
    ):
        list(pool.decode(items_of(draw(tmp_path, 3))))


def test_a_pool_that_cannot_be_started_is_an_error(draw, tmp_path, monkeypatch):
    def fail(self):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(decode_pool._Worker, "start", fail)
    with pool_of(2) as pool:
        pool.start()
        with pytest.raises(ChildProcessError, match="could not start"):
            list(pool.decode(items_of(draw(tmp_path, 3))))


def test_a_program_needs_no_guard(tmp_path):
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    command = [sys.executable, "-P", str(tmp_path / "unguarded.py")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")


# The end ------------------------------------------------------------------------------------------


def test_leaving_early_ends_the_workers(draw, speak, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_pool, "MAX_WAITING_BYTES", 0)
    clips = [clip(path) for path in sorted(speak(tmp_path / "s", "a.wav", "b.wav").iterdir())]
    with pool_of(2) as pool:
        next(pool.decode([*items_of(draw(tmp_path / "p", 30)), *clips]))
        assert len(multiprocessing.active_children()) >= 1
    assert multiprocessing.active_children() == []


def test_leaving_at_once_ends_workers_that_are_starting():
    with pool_of(2) as pool:
        pool.start()
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


def test_a_pool_without_tasks_starts_nothing(starts):
    with pool_of(2) as pool:
        assert list(pool.decode([])) == []
    assert starts == []


def test_workers_leave_ctrl_c_to_the_parent(draw, tmp_path):
    items = items_of(draw(tmp_path, 40))
    with pool_of(1) as pool:
        results = pool.decode(items)
        first = next(results)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT)
        check_equal([first, *results], expected_of(items))
