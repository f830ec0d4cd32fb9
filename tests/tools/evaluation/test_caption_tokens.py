import pytest

from im2sp.tools.engines.java import TOKENIZER_JAR, JavaTools
from im2sp.tools.evaluation.caption_tokens import tokenize, tokenize_with_java
from support.evaluation import stand_in_java

# What CoreNLP's program makes of each, punctuation left out.
GOLDEN = [
    ("A dog runs .", "a dog runs"),
    ("Two men, one in red, cannot stop!", "two men one in red can not stop"),
    ("the boys' ball isn't James's", "the boys ball is n't james 's"),
    ("He said \"hello there\" and 'bye' to them.", "he said hello there and bye to them"),
    ("it\u2019s a \u201cT-shirt\u201d \u2014 red\u2026", "it 's a t-shirt red"),
    ("Mr. Smith vs. the U.S. at 5 p.m.", "mr. smith vs. the u.s. at 5 p.m."),
    ("no. 7 in the St. Louis shirt, no.", "no. 7 in the st. louis shirt no"),
    (
        "a two-year-old (in red) & a mid-air jump -",
        "a two-year-old -lrb- in red -rrb- & a mid-air jump",
    ),
    (
        "5,000 people at 10:30, 3 1/2 miles, 50%, $5 or \u20ac20",
        "5,000 people at 10:30 3\xa01/2 miles 50 % $ 5 or $ 20",
    ),
    (
        "black/white and/or a/b/c 4x4 1990s '90s 20's",
        "black/white and/or a/b/c 4x4 1990s '90s 20 's",
    ),
    (
        "rock 'n' roll, rock'n'roll o'clock ma'am y'all",
        "rock 'n' roll rock 'n' roll o'clock ma'am y' all",
    ),
    ("wow!! what?! a... b.... c -- d --- e", "wow !! what ?! a. b. c d e"),
    ("gonna wanna gimme lemme gotta 'tis", "gon na wan na gim me lem me got ta 't is"),
    ("hello.There avrovulcan.com #1 @home C++", "hello.there avrovulcan.com # 1 @home c++"),
    ("na\u00efve caf\u00e9 R&B AT&T plan b.", "na\u00efve caf\u00e9 r&b at&t plan b."),
    ("", ""),
    (" . , ", ""),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "words"), GOLDEN)
def test_words_are_those_of_the_metrics_own_program(caption, words):
    assert tokenize(caption) == words


def test_the_program_itself_agrees():
    tools = JavaTools.find()
    if (why := tools.missing(TOKENIZER_JAR)) is not None:
        pytest.skip(why)
    # Its rule for "no." looks at what follows, be it the next caption; so each has its own line.
    captions = [text for caption, _ in GOLDEN for text in (caption, "dog")]
    found = tokenize_with_java(captions, tools.java, tools.jars / TOKENIZER_JAR)
    assert found[::2] == [words for _, words in GOLDEN]


def test_a_program_that_fails_or_loses_a_line(tmp_path):
    broken = stand_in_java(tmp_path, "import sys; sys.exit('out of memory')")
    with pytest.raises(ValueError, match=r"x\.jar: 1 captions gave 1 lines \(out of memory\)"):
        tokenize_with_java(["a dog"], broken, tmp_path / "x.jar")
    short = stand_in_java(tmp_path, "print('a dog')")
    with pytest.raises(ValueError, match="2 captions gave 2 lines .no message.; expected one each"):
        tokenize_with_java(["a dog", "a cat"], short, tmp_path / "x.jar")
