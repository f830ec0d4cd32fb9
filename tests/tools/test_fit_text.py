import pytest

from im2sp.tools.fit_text import main
from im2sp.trainer.text import read_text_model
from support.training import make_shards


def test_captions_of_a_dataset_and_lines_of_a_file_give_the_same_model(tmp_path, capsys):
    from im2sp.shards import ShardDataset

    shards = make_shards(tmp_path / "shards")
    captions = [text for sample in ShardDataset(shards, "train") for text in sample.captions]
    (tmp_path / "lines.txt").write_text("\n\n".join(captions) + "\n")
    one, two = tmp_path / "one.model", tmp_path / "two.model"
    assert main([str(shards), "--split", "train", "--out", str(one), "--pieces", "60"]) == 0
    assert main([str(tmp_path / "lines.txt"), "--out", str(two), "--pieces", "60"]) == 0
    assert one.read_bytes() == two.read_bytes()
    model = read_text_model(one)
    assert f"{one}: {model.vocabulary.num_ids} pieces" in capsys.readouterr().out
    assert model.decode(model.encode(["Two dogs jump"])[0]).startswith("two dog")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: path.mkdir(), [], "neither a dataset's folder nor a text file"),
        (lambda path: path.write_text("a b"), ["--split", "val"], "a text file has no splits"),
        (lambda path: path.write_bytes(b"\xff\xfe"), [], "not UTF-8 text"),
        (lambda path: path.write_text("\n"), [], "cannot fit a text model of 4000 pieces"),
        (lambda path: path.write_text("abcdef"), ["--pieces", "3"], "a text model of 3 pieces"),
    ],
)
def test_refusals(tmp_path, capsys, make, options, message):
    make(tmp_path / "source")
    out = tmp_path / "text.model"
    assert main([str(tmp_path / "source"), "--out", str(out), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fit_text: ")
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()
