"""Decides without a library whether two answers are equal, and writes the undecided ones as math-verify reads them.

Decided here: numbers (separators, fractions, exponents, percent, currency, units), choices, words, clock times,
numerals of another base, equal texts. Models write the answers, so no function evaluates them or raises for a text.
"""

import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

from erltool.tasks.answers import CHANGES, SCALES, plain, tidy

_PLAIN = re.compile(r"-?[0-9]{1,1000}(?:\.[0-9]{1,1000})?(?:/[0-9]{1,1000})?")


def same_number(answer: str, truth: str) -> bool | None:
    """Whether two numbers are equal; None where either is not a number.

    A fraction without a finite decimal equals a decimal that agrees with it to six places, as in math-verify. 42 %
    equals 42 and 0.42 where those have no unit. Numbers with different known units differ.
    """
    if _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(truth):
        a, b = _value(answer), _value(truth)
        return a is not None and b is not None and _same_value(a, b)
    given, wanted = number(answer), number(truth, strict=True)
    return None if given is None or wanted is None else _same(given, wanted)


def plainly_same(truth: str, answer: str) -> bool | None:
    """Whether an answer equals the true one; None where only a library can tell.

    If the true answer is a number, or a list of numbers, the other must state it: in "49+6" and "110/2" the work of
    finding 55 is left to do. A policy that is rewarded for such an answer learns to repeat the problem. The grader of
    PRM800K (Lightman et al. 2023, arXiv 2305.20050) asks the same where the true answer is an integer.
    """
    same = same_number(answer, truth)
    if same and not is_worked_out(answer) and is_worked_out(truth):
        return _said_before(truth, answer)
    if same is not None:
        return same
    truth, answer = tidy(plain(truth)), tidy(plain(answer))
    if not answer or _key(truth) == _key(answer):
        return bool(answer)
    if (same := _same_numeral(truth, answer)) is not None:
        return same
    if wanted := number(truth, strict=True):
        stated = _stated(answer)
        if _UNSOLVED.match(answer):
            return False
        if not is_worked_out(stated) and is_worked_out(truth):
            return _said_before(truth, answer)
        if given := number(stated):
            return _same(given, wanted)
        if not _FORMULA.search(answer):
            return False
    if not _states(truth, answer):
        return False
    for kind in (_choice, _clock, _words):
        if (true_text := kind(truth)) and (text := kind(answer)):
            return text == true_text
    units = {_without_unit(truth)[1], _without_unit(answer)[1]} - {""}
    return False if len(units) > 1 else None


def is_worked_out(answer: str) -> bool:
    """Whether no operation is left to do in an answer that should be a number: a fraction is no whole number, and a
    power is of ten, as in 1.5 * 10^3. Of an equation the last side counts."""
    text = _NOISE.sub(" ", _without_unit(_EQUALS.split(tidy(plain(answer)))[-1])[0])
    text = _OVER.sub(r"\1/\2", _POWER_OF_TEN.sub("", text))
    for pattern in _FRACTION, _RATIO:
        for m in pattern.finditer(text):
            *_, top, bottom = (int(group) for group in m.groups() if group)
            if bottom and top % bottom == 0:
                return False
        text = pattern.sub(" 1 ", text)
    return not _OPERATION.search(text)


def is_copied(answer: str, prompt: str, truth: str) -> bool:
    """Whether an answer is a formula of the prompt, with work left to do, where the true answer does not stand:
    "x^2-9" to "Factor $x^2-9$."."""
    answer, prompt, truth = (_GLUE.sub("", plain(text)) for text in (answer, prompt, truth))
    return not is_worked_out(answer) and answer in prompt and truth not in prompt


def _said_before(truth: str, answer: str) -> bool:
    """Whether an equation whose last side is not worked out has the true number on a side before: 55 = 49+6."""
    done = [side for side in _EQUALS.split(answer)[:-1] if _DIGIT.search(side) and is_worked_out(side)]
    return bool(done) and plainly_same(truth, done[-1]) is True


def _states(truth: str, answer: str) -> bool:
    """Whether each number of the true answer stands in the other, whatever its sign, and with no work left to do; True
    for a true answer that is neither a number nor a list of them."""
    truth, answer = (_ungrouped(_without_separators(text)) for text in (truth, answer))
    wanted, parts = ([part for part in _ITEM.split(text) if part.strip()] for text in (truth, answer))
    values = [number(part, strict=True) for part in wanted]
    if not wanted or not all(values) or not all(map(is_worked_out, wanted)):
        return True
    text = _OVER.sub(r"\1/\2", answer)
    read = [found[0] for m in _START.finditer(text) if (found := _magnitude(text[m.start() :]))]
    said = {value for size in read for value in (size, size / 100, size * 100)}  # of 0.42, 42 % is another spelling
    return all(any(_same_value(abs(v.value), size) for size in said) for v in values if v) and (
        len(wanted) == 1 or all(map(is_worked_out, parts))
    )


def for_library(answer: str) -> str:
    """An answer in LaTeX that math-verify reads correctly; "" for one whose braces do not match.

    Left as it is, math-verify adds two numbers side by side, multiplies letters, and knows no plain `sin` or `pi` and
    no exponent behind an e.
    """
    text = _without_separators(answer)
    text = re.sub(r"([0-9}\])])\s*(?:\\q?quad|\\vee|\\lor)\s*(?=[A-Za-z0-9(-])", r"\1, ", text)
    text = _without_unit(_NOISE.sub(" ", text))[0]
    text = re.sub(r"(?<![0-9.])([0-9]+)\s+([0-9]+)/([0-9]+)(?![0-9.])", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<!_)([0-9])(?:\s+(?=[0-9.])|[ \t]*\n\s*(?=[A-Za-z]))", r"\1,", text)
    text = re.sub(r"([0-9.]+)[eE]([-+]?[0-9]{1,3})(?![0-9A-Za-z.])", r"\1\\cdot 10^{\2}", text)
    text = _FUNCTION.sub(r"\\\1 ", text)
    text = text.replace("**", "^").replace("\\varnothing", "\\emptyset")
    steps = (1 if brace == "{" else -1 for brace in re.findall(r"(?<!\\)[{}]", text))
    depths = list(itertools.accumulate(steps, initial=0))
    return text if min(depths) == 0 == depths[-1] else ""


def _without_separators(answer: str) -> str:
    text = _SPACES_IN_LATEX.sub("", tidy(plain(answer)))
    if not re.search(r",\\?\s", text):
        return text
    # In "1,234, 5,678" only the commas with a space separate numbers.
    return re.sub(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])", lambda m: m[0].replace(",", ""), text)


# --- numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number in an answer."""

    value: Fraction
    unit: str = ""  # one of UNITS; "" for none and for unknown words
    name: str = ""  # the variable that has the value: x in "x = 5"


UNITS = {
    alias: line.split()[0]
    for line in """
        % percent percentage pct; deg degree \N{DEGREE SIGN} ^circ;
        $ dollar usd; cent \N{CENT SIGN}; \N{EURO SIGN} euro eur; \N{POUND SIGN} gbp;
        mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre;
        in inch inche; ft foot feet; yd yard; mi mile;
        mg milligram; g gram; kg kilogram; lb pound; oz ounce; ml milliliter millilitre; l liter litre;
        ms millisecond; s sec second; min minute; h hr hour; day; week; month; yr year;
        mph mile/hour mile/h; km/h kmh kph kmph kilometer/hour kilometre/hour; m/s meter/second metre/second
    """.split(";")
    for alias in line.split()
}
_LETTERS_OF_ALGEBRA = {"m", "g", "s", "h", "l"}  # 5m may be a product
_NOT_UNITS = frozenset(
    "or and to plus minus times over divided by pi sqrt root mod modulo more less than not sin cos tan log ln exp "
    "infinity through between even odd if is are was be too".split()
).union(SCALES, CHANGES)
_WORDS_OF_NUMBERS = {word: n for n, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty".split())}  # fmt: skip

_SPACES_IN_LATEX = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|\\[,;: ]|\\thinspace\s?|~)(?=[0-9]{3}(?![0-9]))")
_GROUPS = re.compile(r"(?<![0-9.,'])[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+|(?:'[0-9]{3})+)(?![0-9,'/])")
_EQUALS = re.compile(r"(?<![<>!:=~\\])=(?![=<>])")
# More than one equation, or none.
_SEVERAL = re.compile(r"[,;<>]|\\(?:[lgn]eq?|vee|lor|q?quad|text)\b|\b(?:or|and)\b|[0-9}]\s+\\?[A-Za-z]+\s?=")
_SIGN = re.compile(r"(?:\\approx\s?|=\s?)?([-+]?)\s?(\\?\$|[€£])?\s?([-+]?)(.*)", re.DOTALL)
_ARGUMENT = r"\s?(?:\{\s?(-?[0-9]+)\s?\}|([0-9]))"
_FRACTION = re.compile(rf"([0-9]*)\s?\\[dtc]?frac{_ARGUMENT}{_ARGUMENT}(?![0-9])")
_RATIO = re.compile(r"(?<![0-9.])(?:([0-9]+)\s(?=[0-9]+/))?([0-9]+)\s?/\s?([0-9]+)(?![0-9.])")
_POWER = re.compile(r"([0-9]{1,6})\s?(?:\^|\*\*)\s?(?:\{\s?(-?[0-9]{1,3})\s?\}|(-?[0-9]{1,3}))")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
_DECIMAL = re.compile(
    r"([0-9]+\.?[0-9]*|\.[0-9]+)"
    r"(?:[eE]([-+]?[0-9]{1,3})(?![0-9A-Za-z.])|\s?(?:\\times|\\cdot|[x*])\s{0,2}10\s?\^\s?\{?([-+]?[0-9]{1,3})\}?)?"
)
_POWER_OF_TEN = re.compile(
    r"(?<=[0-9.])[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z.])"
    r"|(?:(?:\\times|\\cdot|[x*])\s{0,2})?(?<![0-9.])10\s?(?:\^|\*\*)\s?\{?[-+]?[0-9]{1,3}\}?"
)
_OVER = re.compile(r"\{?(?<![0-9.])([0-9]+)\s*(?:\\over|:)\s*([0-9]+)(?![0-9.])\}?")
_OPERATION = re.compile(
    r"[0-9A-Za-z)}\]!%]\s*(?:[-+*]|\\(?:cdot|times|div|pm|mp|ast|bmod)(?![A-Za-z]))\s*[-+]?\s*\\?\$?[0-9.({\[\\|]"
    r"|[0-9)}\]!]\s*(?:/\s*[-+]?\s*[0-9.({\\]|(?:\^|\*\*)(?!\s*\{?\s*\\circ)|\(\s*[-+]?[0-9(])"
    r"|[0-9)}]!|\\(?:over|[dtc]?frac(?!\s?\{\s?\\?[A-Za-z])|[dt]?binom|sqrt|log|ln|exp|sum|prod|int|lim|gcd|lcm|max|min"
    r"|lfloor|lceil|det|sin|cos|tan|sec|csc|cot|p?mod)(?![A-Za-z])|\||[vV]matrix"
    r"|\b(?:sqrt|choose|plus|minus|times|divided by|mod|gcd|lcm|log|ln)\b"
)
_GLUE = re.compile(r"[\s$]|\\(?:left|right)(?![A-Za-z])|\\[,;:!]")
_ITEM = re.compile(r"[,;()\[\]]|\\[{}]")  # what separates the numbers of a list, a pair, a set, an interval
_START = re.compile(r"(?<![0-9.])(?=[0-9.]|\\[dtc]?frac)")  # of a number
_DIGIT = re.compile(r"(?<![A-Za-z_])(?<!_\{)[0-9]")


def number(text: str, strict: bool = False) -> Number | None:
    """The number that a text is, or None. `strict`, for a true answer, reads a letter behind a number as a variable,
    and words as a unit only inside \\text{}."""
    text = _SPACES_IN_LATEX.sub("", tidy(plain(text)))
    if text[:1] + text[-1:] == "()" and not re.search(r"[,(]", text[1:]):
        text = text[1:-1].strip()
    text = _ungrouped(text)
    name, *sides = [text] if _SEVERAL.search(text) or _UNSOLVED.match(text) else _EQUALS.split(text)
    text = sides[-1].strip() if sides else text
    name = name.replace(" ", "") if sides and re.search("[A-Za-z]", name) else ""
    if text.lower() in _WORDS_OF_NUMBERS:
        return Number(Fraction(_WORDS_OF_NUMBERS[text.lower()]))
    parts = _SIGN.fullmatch(text)
    assert parts  # it matches every text
    before, currency, after, text = parts.groups()
    if (before and after) or not (magnitude := _magnitude(text)):
        return None
    value, length = magnitude
    if not (behind := _unit(text[length:], strict)) or (currency and behind[1]):
        return None
    factor, unit = behind
    sign = -1 if "-" in (before, after) else 1
    return Number(value * factor * sign, UNITS[currency.lstrip("\\")] if currency else unit, name)


def _ungrouped(text: str) -> str:
    """A text without the separators of thousands: 1234 for 1,234 and 1 234."""
    return _GROUPS.sub(lambda m: re.sub("[, ']", "", m[0]), text)


def _magnitude(text: str) -> tuple[Fraction, int] | None:
    """The number without a sign that a text begins with, and how many characters it takes."""
    if m := _POWER.fullmatch(text):
        return (Fraction(m[1]) ** int(m[2] or m[3]), m.end()) if int(m[1]) else None
    if m := _FRACTION.match(text):
        whole, top, bottom = m[1], m[2] or m[3], m[4] or m[5]
    elif m := _RATIO.match(text):
        whole, top, bottom = m.groups()
    elif m := _REPEATING.match(text):
        once, again = Fraction(int(m[1] + m[2] or 0), 10 ** len(m[2])), int(m[3])
        return once + Fraction(again, (10 ** len(m[3]) - 1) * 10 ** len(m[2])), m.end()
    elif m := _DECIMAL.match(text):
        return Fraction(m[1]) * Fraction(10) ** int(m[2] or m[3] or 0), m.end()
    else:
        return None
    proper = not whole or 0 < int(top) < int(bottom)
    return (int(whole or 0) + Fraction(int(top), int(bottom)), m.end()) if proper and int(bottom) else None


_WRAPPED = re.compile(r"\s*\\(?:text\w*|math\w+|mbox|operatorname)\s?\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z.'/ -]*")


def _unit(text: str, strict: bool) -> tuple[int, str] | None:
    """The factor (million) and the unit in the text behind a number; None where that text is something else."""
    wrapped = bool(_WRAPPED.search(text))
    attached = text[:1].isalpha()
    words = _WRAPPED.sub(r" \1", text).replace("{", "").replace("}", "").replace("\\", "").strip(" .,;:")
    if not words:
        return 1, ""
    first, _, rest = words.partition(" ")
    if first.lower() in SCALES:
        behind = _unit(" " + rest, strict)
        return behind and (SCALES[first.lower()] * behind[0], behind[1])
    unit = known_unit(words)
    if unit and not (strict and not wrapped and words in _LETTERS_OF_ALGEBRA):
        return 1, unit
    spelt = [w for w in re.split(r"[\s/.'-]+", words.lower()) if w]
    plain_words = _WORDS.fullmatch(words) and not _NOT_UNITS & set(spelt)
    loose = not strict and not attached and any(len(w) > 2 and re.search("[aeiou]", w) for w in spelt)
    return (1, "") if plain_words and (wrapped or loose) else None


def known_unit(text: str) -> str:
    """The unit's name in UNITS, with its power: "square meters" gives "m^2"; "" for an unknown unit."""
    text = re.sub(r"\s+per\s+|\s*/\s*", "/", text.strip().lower())
    m = re.fullmatch(r"(?:(square|sq\.?|cubic|cu\.?)\s)?(.*?)\s?(?:\^?([23])|(squared)|(cubed))?", text, re.DOTALL)
    assert m  # it matches every text
    power = m[3] or ("2" if m[4] or (m[1] or "").startswith("sq") else "3" if m[5] or m[1] else "")
    name = "/".join(word if word in UNITS else word.rstrip("s") for word in m[2].split("/"))
    return UNITS[name] + (power and f"^{power}") if name in UNITS else ""


def _value(text: str) -> Fraction | None:
    top, _, bottom = text.partition("/")
    return Fraction(top) / int(bottom or 1) if int(bottom or 1) else None


def _same(a: Number, b: Number) -> bool | None:
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if _same_value(a.value, b.value):
        return None if a.name and b.name and a.name != b.name else True
    percent, other = (a, b) if a.unit == "%" else (b, a)
    return percent.unit == "%" and not other.unit and _same_value(percent.value / 100, other.value)


def _same_value(a: Fraction, b: Fraction) -> bool:
    if a == b:
        return True
    if _is_finite(a) == _is_finite(b):
        return False
    places = round(a * 10**6)
    return places == round(b * 10**6) != 0


def _is_finite(value: Fraction) -> bool:
    """Whether the value has a finite decimal."""
    return pow(10, value.denominator.bit_length(), value.denominator) == 0


# --- other plain answers --------------------------------------------------------------------------

_FORMULA = re.compile(r"[0-9\\^_=+*/(\[{|!<>]|\b(?:sqrt|pi|e|i)\b")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])((?:arc)?(?:sin|cos|tan)|sec|csc|cot|log|ln|sqrt(?!\s?\()|pi)(?![a-z])")
_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|bigg?|Bigg?|!)(?![a-zA-Z])|\\(?:text)?color\s?\{[^{}]*\}"
    r"|(?<!\\)\\(?:[,;: ]|q?quad\b)|~"
)
_UNSOLVED = re.compile(r"(?:-?[0-9.]+\s?[a-z]|[a-z]\s?\^\s?\{?[0-9]\}?)\s?=\s?[^=]*\Z")  # in 2x=10, x is not 10
_REASON = re.compile(r",? (?:because|since|as|where|which|so|for|when|after|out of)\b|\(|[,;] (?=[a-z])")
_HEDGE = re.compile(
    r"\b(?:no|not|never|cannot|neither|nor|or|either|between|than|most|least|except|unless|maybe|perhaps|possibly|over|under"
    r"|above|below|up to|minus|negative|half|twice|double|too|wrong|incorrect|false|impossible)\b|n't\b",
    re.IGNORECASE,
)
_STATED = re.compile(r"(?<![\w.])[-+]?\$?(?:[0-9][0-9,./]*)?[0-9](?![A-Za-z^])|(?<![\w.])[-+]?\.[0-9]+")


def _key(text: str) -> str:
    """A text without meaningless spaces."""
    return re.sub(r"\s*([,;=+*/(){}\[\]^-])\s*", r"\1", re.sub(r"\s+", " ", _NOISE.sub(" ", text))).strip()


def _stated(answer: str) -> str:
    """The number of a sentence that states only one ("It is 42 apples, because 6*7=42"); else the whole answer."""
    said = _REASON.split(answer, maxsplit=1)[0]
    stated = list(_STATED.finditer(said))
    if not re.fullmatch(r"[\w ,.:$%'-]*", said) or len(stated) != 1 or _HEDGE.search(answer):
        return answer
    behind = said[stated[0].end() :]
    return stated[0][0] if re.match(r" (?:is|are|was|were)\b", behind) else said[stated[0].start() :]


def _same_numeral(truth: str, answer: str) -> bool | None:
    """Whether two numerals agree in digits and base; one may omit its base. None if both do, or one is no numeral."""
    a, b = (re.fullmatch(r"([0-9][0-9A-F]*)(?:_\{?([0-9]{1,2})\}?)?", text) for text in (truth, answer))
    if not (a and b and (a[2] or b[2])):
        return None
    return a[1] == b[1] and (not a[2] or not b[2] or a[2] == b[2])


def _without_text(text: str) -> str:
    return _WRAPPED.sub(r" \1", text).strip()


def _without_unit(text: str) -> tuple[str, str]:
    """An expression without the words or the unit behind it, and the unit's name."""
    m = re.fullmatch(r"(.*\S)\s*(\\(?:text|mathrm|mbox|textrm)\s?\{([^{}]*)\}(?:\^\{?[23]\}?)?)", text, re.DOTALL)
    if m and not _NOT_UNITS & set(m[3].lower().split()):
        return m[1].strip(), known_unit(_without_text(m[2]).replace("{", "").replace("}", ""))
    m = re.fullmatch(r"(.*[0-9})]|.*\\pi)\s((?:sq(?:uare)? |cubic )?[a-z]{2,}(?:\^\{?[23]\}?)?)", text, re.DOTALL)
    if m and (unit := known_unit(m[2].replace("{", "").replace("}", ""))):
        return m[1], unit
    return text, ""


def _choice(text: str) -> str:
    """The letter of a choice: B for "B", "(B)", "B. 42", "(B) 42" and "Option B"."""
    m = re.match(r"(?:(?:option|choice)\s)?\(?([A-Za-z])(?:\)\s?|[.:]\s|$)(.*)", _without_text(text), re.I | re.S)
    return m[1].upper() if m and not re.search(r"\b[A-J]\b|\b[b-j][.)]", m[2]) else ""


def _clock(text: str) -> str:
    m = re.fullmatch(r"0?([0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?)\s?(?:([ap])\.?\s?m\.?)?", _without_text(text).lower())
    return f"{m[1]} {m[2] or ''}" if m else ""


def _words(text: str) -> str:
    text = re.sub(r"\s+", " ", _without_text(text).casefold())
    return text if re.fullmatch(r"(?=.{3})[a-z]{2,}[a-z' -]*", text) else ""
