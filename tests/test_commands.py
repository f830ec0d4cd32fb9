"""What all commands and tools have in common."""

from importlib import import_module

import pytest

from im2sp.shards.files import output_lock


def run(capsys, module, *args):
    """Exit status, standard output and standard error of a command in this process."""
    try:
        status = import_module(f"im2sp.{module}").main([str(arg) for arg in args])
    except SystemExit as left:
        status = left.code
    return status, *capsys.readouterr()


WRITERS = {
    "trainer.cli": ["--shards", "docs"],
    "tools.speak": ["--units", "docs"],
    "tools.evaluate": ["--topline", "units", "--shards", "docs"],
    "tools.fit_image_tokenizer": ["--images", "docs", "--val", "docs"],
    "tools.fit_speech_tokenizer": ["--captions", "docs", "--recordings", "docs"],
    "tools.fit_vocoder": ["--captions", "docs"],
    "tools.fit_unit_lm": ["docs"],
    "tools.fit_units": ["docs", "--speech-tokenizer", "compact"],
    "tools.flickr8k_spoken": ["docs"],
}


@pytest.mark.parametrize("module", WRITERS)
def test_an_output_has_one_writer(module, tmp_path, capsys):
    is_folder = module != "tools.fit_units"
    out = tmp_path / ("out" if is_folder else "out.safetensors")
    with output_lock(out, is_folder=is_folder):
        status, text, errors = run(capsys, module, *WRITERS[module], "--out", out)
    assert (status, text, errors.count("\n")) == (1, "", 1), errors
    assert f"--out {out}: another im2sp command is writing here; wait for it" in errors
