"""The error of a picture that is refused, and how names are shown in messages."""


class ImageError(ValueError):
    """A picture cannot be used; the message says what was found. Costs one reject, never a run."""


def shown(name: str) -> str:
    r"""`name` on one line: control characters and broken UTF-8 as backslash escapes.

    shown("line\nbreak.jpg") == "line\\nbreak.jpg"; accents, spaces and quotes stay.
    """
    if name.isprintable():
        return name
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in name
    )
