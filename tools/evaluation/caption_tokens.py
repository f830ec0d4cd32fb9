"""Words of captions as the COCO metrics count them: Penn Treebank tokens without punctuation.

The COCO metrics use the PTBTokenizer of Stanford CoreNLP 3.4.1, which needs Java. `tokenize` gives
the same words without Java for all 35,000 captions of Flickr8k's train and val splits and for the
cases in its test. It does not cover web pages, program text and the like; `tokenize_with_java` runs
the original program.
"""

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

PUNCTUATION = frozenset(
    [*("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"), *".?!,:-;", "--", "..."]
)
"""Tokens that the metrics drop. Brackets are kept, because they arrive as `-lrb-`."""

_WRITTEN_SO = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"\N{EURO SIGN}": "$", "\N{POUND SIGN}": "#", "\N{CENT SIGN}": "cents"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", '"': "''"},
}
# Canonical form of characters that CoreNLP treats alike: quotes, dashes, invisible characters.
_ONE_FORM = {
    **dict.fromkeys("\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}", "'"),
    **dict.fromkeys("\N{SINGLE HIGH-REVERSED-9 QUOTATION MARK}", "'"),
    **dict.fromkeys("\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}", '"'),
    **dict.fromkeys("\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}", '"'),
    **dict.fromkeys("\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}", '"'),
    **dict.fromkeys("\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "'"),
    **dict.fromkeys("\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}", "'"),
    **dict.fromkeys("\N{EN DASH}\N{EM DASH}\N{HORIZONTAL BAR}", "--"),
    "\N{HORIZONTAL ELLIPSIS}": " ... ",
    "\N{VULGAR FRACTION ONE HALF}": " 1/2 ",
    "\N{VULGAR FRACTION ONE QUARTER}": " 1/4 ",
    "\N{VULGAR FRACTION THREE QUARTERS}": " 3/4 ",
    "\N{SOFT HYPHEN}": "",
    "\N{ZERO WIDTH SPACE}": " ",
}
_CHARACTERS = str.maketrans(_ONE_FORM)

# A period after one of these is always part of the token.
_ABBREVIATIONS = (
    *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "mon"),
    *("tue", "tues", "wed", "thu", "thurs", "fri", "calif", "conn", "co", "corp", "inc", "ltd"),
    *("bros", "mr", "mrs", "ms", "dr", "drs", "prof", "profs", "sen", "sens", "rep", "reps"),
    *("atty", "attys", "lt", "col", "gen", "messrs", "gov", "govs", "adm", "rev", "maj", "sgt"),
    *("cpl", "pvt", "capt", "ste", "st", "ave", "pres", "lieut", "hon", "brig", "cmdr", "comdr"),
    *("pfc", "spc", "supt", "supts", "det", "mt", "ft", "adj", "adv", "asst", "assoc", "ens"),
    *("insp", "mlle", "mme", "msgr", "sfc", "jr", "sr", "blvd", "rd", "esq", "est", "dept"),
    *("univ", "sq", "tel", "cf", "al", "vs", "etc", "ph"),
)
_LETTER = r"[^\W\d_]"
_WORD = r"[^\W_](?:\w*[^\W_])?+"  # letters, digits, and _ between them
_HYPHEN = "[-\N{HYPHEN}\N{NON-BREAKING HYPHEN}]"
_CLITIC = r"(?:s|d|m|re|ve|ll)(?![a-z])"
_END = rf"(?!'?\w)(?!{_HYPHEN}\w)"
_RULES = (
    r"(?:https?://|www\.)[^\s\"<>|()]*[^\s\"<>|(),.!?;:'\-]",
    r"\w[\w.+\-]*@\w[\w\-]*(?:\.[\w\-]+)*",
    r"[@#][a-z_]\w*",
    r"</?[a-z][^<>\s]*>",
    r"[:;]-?[()]|[:;]-?[dp](?!\w)",
    # Apostrophes: suffixes of a word, prefixes, and those inside a word.
    rf"'{_CLITIC}",
    r"n't(?![a-z])",
    r"'t(?=(?:is|was)(?![a-z]))",
    r"'n'|'n(?![a-z])",
    r"'(?:em|cause|till?|[2-9]0s)(?!\w)|'\d\d(?!\w)",
    r"y'(?=[a-z])|(?:ol|somethin)'(?!\w)",
    r"(?:c'mon|ne'er|nor'easter|s'mores|li'l|ev'ry|nat'l|c'est)(?!\w)",
    rf"{_LETTER}+[aeiouy]'[aeiou]{_LETTER}*",
    rf"[dolj]'(?!{_CLITIC}){_WORD}(?:{_HYPHEN}{_WORD})*",
    rf"can(?=not{_END})|(?:gon|wan)(?=na{_END})|got(?=ta{_END})|(?:lem|gim)(?=me{_END})",
    rf"{_LETTER}+?(?=n't(?![a-z]))",
    # Periods: u.s., hello.there, mr., a.
    rf"{_LETTER}(?:\.{_LETTER})+\.(?:-{_WORD})*(?!{_LETTER})|(?:ph|ed)\.d\.?(?!\w)",
    r"[a-z]+(?:\.[a-z]+)++(?!\w)",
    rf"(?:{'|'.join(_ABBREVIATIONS)})\.(?:-{_WORD})*(?!\w)",
    r"nos?\.(?=\s?\d)",
    r"[a-z]\.",
    rf"{_LETTER}+[!?]{_LETTER}+",
    # Numbers: (555) 555-1234, 3 1/2, and/or, 10,000, 5:30.
    r"\(\d{3}\)\s?\d{3}-\d{4}",
    r"\d{1,4}[\s-]\d{1,4}/\d{1,4}(?![\w/])",
    r"[a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}",
    rf"\d++(?:[.,:]\d++)+(?:-{_WORD})*|[.,:]\d++(?:[.,:]\d+)*",
    rf"{_WORD}(?:{_HYPHEN}{_WORD})+",
    r"c\+\+|[cf]#|(?-i:[A-Z]+(?:&[A-Z]+)+|US\$)",
    r"[-+](?:\d++(?:[.,:]\d+)*|[.,]\d+)",
    _WORD,
    # Everything else; only runs of one kind of character form one token.
    r"\.{2,}|--+|[!?]+|\*+|_+|``|''|&(?:amp|lt|gt);",
    r"\S",
)
_TOKEN = re.compile("|".join(_RULES), re.IGNORECASE)
_NO_PLAIN_END = frozenset(_ABBREVIATIONS)
_PLAIN = re.compile(r"[A-Za-z]+(?: ?,? [A-Za-z]+)*(?: ?\.)?")
_SPLIT_WORDS = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])


def tokenize(caption: str) -> str:
    """Words of a caption, lower-case, separated by single spaces.

    >>> tokenize("A dog isn't in (its) t-shirt.")
    "a dog is n't in -lrb- its -rrb- t-shirt"
    """
    text = caption.strip()
    if _PLAIN.fullmatch(text):  # most captions: words, commas, an optional period at the end
        words = text.lower().replace(",", " ").removesuffix(".").split()
        last = words[-1]
        if len(last) > 1 and last not in _NO_PLAIN_END and _SPLIT_WORDS.isdisjoint(words):
            return " ".join(words)
    tokens = (_written(token) for token in _TOKEN.findall(text.translate(_CHARACTERS)))
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _written(token: str) -> str:
    known = _WRITTEN_SO.get(token)
    if known is not None:
        return known
    if token[:2] in ("--", ".."):
        return token[:1]
    if len(token) > 1 and token[0] in "(:;":
        token = "".join(_WRITTEN_SO.get(c, c) for c in token)
    # A no-break space keeps the two parts of 3 1/2 in one token.
    return re.sub(r"\s", "\N{NO-BREAK SPACE}", token.lower())


def tokenize_with_java(captions: Iterable[str], java: str, jar: Path) -> list[str]:
    """Tokenize captions with CoreNLP's program, called as pycocoevalcap calls it.

    Args:
        captions: Texts; line breaks count as spaces.
        java: Path of the `java` program.
        jar: Path of stanford-corenlp-3.4.1.jar.

    Raises:
        ValueError: Java fails, or returns another number of lines.
    """
    lines = [" ".join(caption.split()) for caption in captions]
    command = [java, "-Xmx512m", "-Dfile.encoding=UTF-8", "-cp", str(jar)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # The sentinel line terminates the last caption, so an empty one is not dropped.
    text = "".join(f"{line}\n" for line in [*lines, "end"])
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    found = done.stdout.decode("utf-8", "replace").split("\n")
    if done.returncode or len(found) <= len(lines) or found[len(lines)] != "end":
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(
            f"{java} with {jar.name}: {len(lines):,} captions gave {len(found):,} lines"
            f" ({why[-1] if why else 'no message'}); expected one each"
        )
    return [_without_punctuation(line.rstrip().split(" ")) for line in found[: len(lines)]]


def _without_punctuation(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)
