"""`im2sp-tokenize --part`."""

import json

import pytest

from im2sp.pipeline.job import config as job_config


@pytest.fixture(scope="module")
def pictures(draw, tmp_path_factory):
    return draw(tmp_path_factory.mktemp("parts") / "p", 40, broken=[2, 33])


def test_a_job_in_parts_ends_with_the_same_bytes(
    tokenize, pictures, tmp_path, monkeypatch, files_of
):
    monkeypatch.setattr(job_config, "CHUNK_SIZE", 8)
    tokenize(pictures, "--out", tmp_path / "whole", "--quiet")
    out = tmp_path / "out"
    code, text, err = tokenize(pictures, "--out", out, "--part", "1/2")
    assert code == 0
    assert text.startswith(f"part 1/2  16 inputs of {pictures}; encoded 16 in ")
    assert "\nleft      24 inputs of other parts; run the same command without --part" in text
    assert "16/16" in err
    code, text, _ = tokenize(pictures, "--out", out, "--part", "0/2", "--json", "--quiet")
    figures = json.loads(text)
    assert (code, figures["part"], figures["num_refused"], figures["num_left"]) == (0, "0/2", 2, 0)
    assert not (out / "dataset.json").exists()
    code, text, _ = tokenize(pictures, "--out", out)
    assert code == 0
    assert "nothing left to encode" in text
    assert files_of(out) == files_of(tmp_path / "whole")
    code, text, _ = tokenize(pictures, "--out", out, "--part", "0/2")
    assert text == f"part 0/2  {pictures}: already done with the same settings, nothing to do\n"


@pytest.mark.parametrize("part", ["2/2", "-1/2", "1", "1/0", "a/b", "1/2/3", "", "0 /2"])
def test_parts_that_cannot_be_are_wrong_usage(tokenize, pictures, tmp_path, part):
    code, _, err = tokenize(pictures, "--out", tmp_path / "out", f"--part={part}")
    assert code == 2
    assert f"--part is {part}; expected I/N with I from 0 to N - 1, such as 0/4" in err
    assert not (tmp_path / "out").exists()


def test_a_part_replaces_nothing(tokenize, pictures, tmp_path):
    code, _, err = tokenize(pictures, "--out", tmp_path, "--part", "0/2", "--overwrite")
    assert code == 2
    assert "--overwrite cannot be used with --part, as other parts may have begun; remove" in err
    code, _, err = tokenize(pictures, "--out", tmp_path, "--part", "0/2", "--engine", "ray")
    assert code == 2
    assert "--part is encoded by this process, not by --engine ray" in err
