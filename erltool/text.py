"""Text from models, files and folders' names, made safe to show: on a terminal, on a page, in any encoding."""

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
PLAIN_ERRORS = "erltool.plain"  # the name under which a stream's `errors` finds `plain`


def visible(text, keep: str = "") -> str:
    """Text with what cannot be seen, or steers a terminal or a page, made visible: "\\r", or "U+001B" for an escape.

    Controls, direction marks, lone surrogates, the replacement character and other spaces than " " are meant; what is
    in `keep` stays. Text without them comes back as it is.
    """
    text = str(text)
    if text.isprintable() and "\ufffd" not in text:
        return text
    return "".join(
        c if c in keep or (c.isprintable() and c != "\ufffd") else ESCAPES.get(c) or f"U+{ord(c):04X}" for c in text
    )


def shown(text, width: int = 60) -> str:
    """`visible` text, cut in its middle to `width` characters."""
    text, half = visible(text), (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}\u2026{text[-half:]}"


def listed(names: Collection, most: int = 12) -> str:
    """Names for an error's text, safe for a terminal: the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in itertools.islice(names, most)) + more


def plain(text: str) -> str:
    """ASCII that reads like the text: "R2" for "R\u00b2", "U+4E2D" for what nothing reads like."""
    return "".join(c if c.isascii() else _plain(c) for c in text)


def _plain(c: str) -> str:
    parts = [_likeness(p) for p in PLAIN.get(c) or unicodedata.normalize("NFKD", c) if not unicodedata.combining(p)]
    return "".join(parts) if all(parts) and parts else f"U+{ord(c):04X}"


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
