"""Text from models, files and names of folders, made safe for a terminal, a page and any encoding."""

import codecs
import itertools
import unicodedata
from collections.abc import Collection

ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
PLAIN = {
    "\u00b5": "u", "\u00b7": "*", "\u00d7": "x", "\u2013": "-", "\u2014": "-", "\u2018": "'", "\u2019": "'",
    "\u201c": '"', "\u201d": '"', "\u2044": "/", "\u2192": "->", "\u2212": "-", "\u2248": "~", "\u2264": "<=",
    "\u2265": ">=",
}  # fmt: skip
PLAIN_ERRORS = "erltool.plain"  # a stream with these `errors` writes `plain` text


def visible(text, keep: str = "") -> str:
    """Text in which hidden characters, and those that steer a terminal or a page, are spelled out: "\\r", "U+001B".

    These are controls, direction marks, lone surrogates, the replacement character and all spaces but " ". Characters
    in `keep` stay, and text without hidden characters stays the same.
    """
    text = str(text)
    if text.isprintable() and "\ufffd" not in text:
        return text
    seen = {c for c in set(text) if c in keep or (c.isprintable() and c != "\ufffd")}
    return "".join(c if c in seen else ESCAPES.get(c) or f"U+{ord(c):04X}" for c in text)


def shown(text, width: int = 60) -> str:
    """`visible` text of at most `width` characters; longer text is cut in the middle."""
    text, half = visible(text), (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}\u2026{text[-half:]}"


def listed(names: Collection, most: int = 12) -> str:
    """The first names and the number of the others, safe for an error's line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in itertools.islice(names, most)) + more


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or as hours, minutes and seconds: "1:05", "2:00:00"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def plain(text: str) -> str:
    """ASCII that reads like the text: "R2" for "R\u00b2"; "U+4E2D" for a character without a likeness."""
    return "".join(c if c.isascii() else _plain(c) for c in text)


def _plain(c: str) -> str:
    letters = PLAIN.get(c) or unicodedata.normalize("NFKD", c)
    likenesses = [_likeness(letter) for letter in letters if not unicodedata.combining(letter)]
    return "".join(likenesses) if likenesses and all(likenesses) else f"U+{ord(c):04X}"


def _likeness(c: str) -> str:
    if c.isascii() or c in PLAIN:
        return PLAIN.get(c, c)
    words = unicodedata.name(c, "").split()
    if words[:1] != ["GREEK"] or words[2:3] != ["LETTER"]:
        return ""
    return words[3].lower() if words[1] == "SMALL" else words[3].capitalize()


def _unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error(PLAIN_ERRORS, _unencodable)
