"""Numbers as people write them: percent signs, decimal commas, thousands separators, the Unicode minus.

A column decides whether comma or point is its decimal sign, or else the whole file does.
"""

import re
from collections.abc import Collection, Mapping

NUMBER_WIDTH = 40  # characters; longer text is prose
EXPONENT = r"(?:e[-+]?[0-9]+)?"
DIGITS = r"(?=[-+]?[.,]?[0-9])"
POINT = re.compile(rf"{DIGITS}[-+]?(?:[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+|[0-9]*)(?:\.[0-9]*)?{EXPONENT}", re.I)
COMMA = re.compile(rf"{DIGITS}[-+]?(?:[1-9][0-9]{{0,2}}(?:\.[0-9]{{3}})+|[0-9]*)(?:,[0-9]*)?{EXPONENT}", re.I)
SPACED = re.compile(r"(?<=[0-9])[ '\u2019\u00a0\u202f](?=[0-9]{3}(?![0-9]))")
OF_TOTAL = re.compile(r"([0-9]+)(?: ?/ ?| of )[0-9]+")


def decimal_signs(columns: Mapping[str, Collection[str]], fractions: bool) -> dict[str, str]:
    """The decimal sign of each column of texts, "." or ","; "" where it is unclear.

    `fractions` says whether the file has other columns of numbers with decimal points.
    """
    sure = {name: _sure_signs(tokens) for name, tokens in columns.items()}
    everywhere = {"."} if fractions else set()
    everywhere.update(*sure.values())
    texts = [text for tokens in columns.values() for text in map(bare, tokens)]
    commas = any("," in text and (POINT.fullmatch(text) or COMMA.fullmatch(text)) for text in texts)
    signs = {}
    for name, tokens in columns.items():
        if len(sure[name]) == 1:
            signs[name] = next(iter(sure[name]))
        elif sure[name]:
            signs[name] = ""
        elif len(everywhere) == 1:
            signs[name] = next(iter(everywhere))
        else:
            unclear = commas and any(_is_unclear(bare(token)) for token in tokens)
            signs[name] = "" if unclear else "."
    return signs


def _sure_signs(tokens: Collection[str]) -> set[str]:
    """The decimal signs that some number of a column must have."""
    signs = set()
    for token in map(bare, tokens):
        point, comma = POINT.fullmatch(token), COMMA.fullmatch(token)
        if bool(point) != bool(comma):
            signs.add("." if point else ",")
    return signs


def _is_unclear(token: str) -> bool:
    """Whether the other decimal sign makes it another number, as in 1,234."""
    return bool(POINT.fullmatch(token) and COMMA.fullmatch(token)) and ("," in token or "." in token)


def bare(token: str) -> str:
    """A number's text without percent sign and spaces, with an ASCII minus."""
    token = token.strip().removesuffix("%").rstrip().replace("\u2212", "-")
    return SPACED.sub("", token)


def number(token: str, sign: str = ".", counts_steps: bool = False) -> float | None:
    """The number (NaN, infinity) in a text with this decimal sign, or None. Where steps are counted, "1/438" is 1."""
    token = bare(token)
    if counts_steps and (match := OF_TOTAL.fullmatch(token)):
        return float(match[1])
    if re.fullmatch(r"[-+]?(nan|inf(inity)?)", token, re.I):
        return float(token)
    if not (POINT if sign == "." else COMMA).fullmatch(token):
        return None
    return float(token.replace(",", "") if sign == "." else token.replace(".", "").replace(",", "."))
