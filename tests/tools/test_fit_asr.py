import gzip

import pytest

from im2sp.tools.engines.asr import LANGUAGE_MODELS
from im2sp.tools.fit_asr import main


def test_a_file_of_captions(tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("a dog runs\n\na dog runs\n")
    for name in ("a.arpa", "b.arpa.gz"):
        assert main([str(captions), "--out", str(tmp_path / name)]) == 0
        assert f"{name}: 12 n-grams, " in capsys.readouterr().out
    text = (tmp_path / "a.arpa").read_bytes()
    assert gzip.decompress((tmp_path / "b.arpa.gz").read_bytes()) == text
    assert text.startswith(b"\\data\\\nngram 1=5\nngram 2=4\nngram 3=3\n")


def test_what_cannot_be_fitted(tmp_path, capsys):
    assert main([str(tmp_path / "x"), "--out", str(tmp_path / "y")]) == 1
    assert "x: neither a dataset's folder nor a text file" in capsys.readouterr().err
    args = [str(tmp_path / "x"), "--out", str(tmp_path / "y"), "--min-count", "0"]
    assert main(args) == 2
    assert "--min-count is 0; expected at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("path", LANGUAGE_MODELS.values())
def test_bundled_language_models_have_cards(path):
    assert path.with_name(path.name.partition(".")[0] + ".md").is_file()
