"""Finds the answer in a response, and removes what surrounds it.

equality.py says what an answer means. No text makes a function here raise, and the work for a text is bounded.
"""

import re
import unicodedata

MAX_CHARS = 100_000  # at the end of a response, that are searched
MAX_ANSWER = 1_000  # characters of an answer

# --- where the answer stands ----------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;&]|\\[,;: ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b){0,20}")
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_MARK = re.compile(r"####|\banswers?\b[\s*_]{0,3}:", re.IGNORECASE)
_PHRASE = re.compile(r"\banswer(?: to (?:this|the) [a-z]{3,12})?\s{1,3}(?:is\b|=)[\s:*_]{0,5}", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
_BARE = re.compile(r"[\s*-]*(?:[A-Za-z]\w?\s?=)?[\s$+-]*[0-9.,/]+[\s$;]*")  # a line of a list of values
_OPENS, _CLOSES = re.compile(r"\\begin\b|\\?[\[({]"), re.compile(r"\\end\b|\\?[\])}]")


def extract_answer(response: str) -> str | None:
    """The answer in a response, or None: its last \\boxed{...} or <answer>...</answer>, else what follows its last
    "Answer:", "####" or "The answer is", else its last number with the list, expression or formula around it.

    Text before the last </think> does not count. Boxes or numbers side by side are one list, so that a response cannot
    give several answers and have each compared.
    """
    answer, said = explicit_answer(response)
    return (tidy(answer or "") or None) if said else _last_number(_tail(response))


def explicit_answer(response: str, lines: int = 1, limit: int = MAX_ANSWER) -> tuple[str | None, bool]:
    """The text in the last box or tag, or behind the last mark, and whether the response has any of these.

    Behind a mark the answer has `lines` lines, or more while a bracket is open, and at most `limit` characters.
    """
    response = _tail(response)
    box, tag = _boxed(response, limit), _tagged(response)
    if tag and (not box or tag[1] > box[1]):
        inside, said = explicit_answer(tag[0], lines, limit) if tag[0] else (None, True)
        return (inside if said else tag[0].strip()[:limit] or None), True
    if box:
        return box[0] or None, True
    marks = [(m.end(), True) for m in _MARK.finditer(response)][-1:]
    marks += [(at, False) for at in [_phrase(response)] if at]
    if not marks:
        return None, False
    at, line = max(marks)
    text = re.sub(r"[ \t]*(?:\*\*|__)?", "", response[at : at + limit], count=1)
    return _block(text, lines, whole_line=line) or None, True


def last_lines(response: str, lines: int, limit: int = MAX_ANSWER) -> str:
    """The last lines of a response, or of the code block that ends it; if 1, JSON over several lines is one line."""
    text = _tail(response).strip()
    if text.endswith("```"):
        text = text[:-3].rpartition("```")[2].partition("\n")[2].rstrip()
    block = text.rpartition("\n\n")[2]
    if lines == 1 and block[:1] + block[-1:] in ("{}", "[]"):
        return block[-limit:]
    return "\n".join(text.splitlines()[-lines:])[-limit:]


def _tail(response: str) -> str:
    return response[-MAX_CHARS:].rpartition("</think>")[2]


def _boxed(response: str, limit: int) -> tuple[str, int] | None:
    """The content of the last box and of the boxes side by side with it, and where it ends; "" for an unclosed one."""
    contents: list[str] = []
    end = after = len(response)
    for box in reversed(list(_BOX.finditer(response))):
        stop = _closing(response, box.end(), limit)
        if contents and (stop is None or not _BETWEEN_BOXES.fullmatch(response, stop + 1, after)):
            break
        contents.append("" if stop is None else response[box.end() : stop].strip())
        end = stop if len(contents) == 1 and stop is not None else end
        after = box.start()
        if not contents[0]:
            break
    return (",".join(dict.fromkeys(reversed(contents))), end) if contents else None


def _closing(text: str, start: int, limit: int) -> int | None:
    depth = 1
    for m in _BRACE.finditer(text, start, start + limit + 1):
        depth += (m[0] == "{") - (m[0] == "}")
        if not depth:
            return m.start()
    return None


def _tagged(response: str) -> tuple[str, int] | None:
    """The content of the last closed <answer>, and where it ends; "" where none is closed."""
    tags, content = list(_TAG.finditer(response)), None
    for opening, closing in zip(tags, tags[1:], strict=False):
        if opening[0][1] != "/" and closing[0][1] == "/":
            content = response[opening.end() : closing.start()], closing.end()
    return content or (("", tags[-1].end()) if tags else None)


def _phrase(response: str) -> int | None:
    """Where the last "the answer is" ends that a number, mathematics, or words without a later number follow."""
    for m in reversed(list(_PHRASE.finditer(response))):
        said = _block(response[m.end() : m.end() + MAX_ANSWER], 1, whole_line=False)
        if re.search(r"[0-9\\$]", said) or not re.search(r"[0-9]", response[m.end() :]):
            return m.end()
        if m.end() < len(response) - 10 * MAX_ANSWER:
            break
    return None


def _block(text: str, lines: int, whole_line: bool) -> str:
    """The first `lines` lines of a text, more while a bracket is open, and a whole column of values. A single line is
    cut after its first sentence, unless `whole_line`."""
    kept: list[str] = []
    is_open, dollars, below = 0, 0, text[:1] == "\n"
    for line in text.strip().splitlines():
        done = len(kept) >= lines and is_open <= 0 and not dollars % 2 and not kept[-1].rstrip().endswith(",")
        if done and not (below and _BARE.fullmatch(kept[-1]) and _BARE.fullmatch(line)):
            break
        kept.append(line)
        is_open += len(_OPENS.findall(line)) - len(_CLOSES.findall(line))
        dollars += line.count("$$")
    block = "\n".join(kept).strip()
    return block if whole_line or len(kept) > 1 else _SENTENCE.split(block, maxsplit=1)[0]


# --- the last number of a text without a mark -----------------------------------------------------

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
_POWER = r"(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z.])|\s?(?:\\times|\\cdot|[x*])\s{0,2}10\s?\^\s?\{?[-+]?[0-9]{1,3}\}?)"
_FRACTION = r"\\[dtc]?frac(?:\{-?[0-9]+\}\{[0-9]+\}|\s?[0-9]{2})"
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.])[-+]?\$?(?:[0-9]+\s[0-9]+/[0-9]+|[0-9]*{_FRACTION}|{_DECIMAL}(?:/[0-9]+|{_POWER})?)"
)
_JOINS = re.compile(
    r"\\?%?\s*(?:,|;|/|\\?&|\bor\b|\band\b|\bto\b|[-–~])?\s*(?:\b(?:or|and)\b\s*)?"  # a list, a range
    r"|\\?%?,?[A-Za-z ]{0,25}\b(?:or|maybe|perhaps|possibly)\b[A-Za-z =]{0,20}"  # 41 apples or perhaps 42
    r"|[ \t]*(?:[-+*/^]|\\(?:cdot|times|div|pm)\b)[ \t]*|:"  # an expression, a ratio
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$(?![0-9])|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_DENIES = re.compile(r"(?:\bnot|n't|\bnever|\bcannot|\bneither)\s(?:(?!but\b)[A-Za-z]+\s){0,3}$")
_ANOTHER = re.compile(  # before a number: a bound, a sign in words, or the expression that it ends
    r"(?:(?<![-=])[<>]=?|\\(?:leq?|geq?|neq?|lt|gt|pm|sqrt|cdot|times|div|log|ln)\b"
    r"|\b(?:minus|negative|plus|times|divided by|mod|choose|log|ln|sqrt|twice|over|under|above|below|at (?:most|least)"
    r"|(?:less|more|fewer|greater|larger|smaller) than)"
    r"|(?:(?<![A-Za-z])[A-Za-z]|\bpi|[)}\]])(?:\s?[+*/^]|-|\s-(?=\s)))\s{0,2}$"
)
_TAG_BEFORE = re.compile(r"<[^<>]{1,30}>\s?$")
_TAKEN_BACK = re.compile(
    r"[A-Za-z ,]{0,20}\b(?:or|wrong|incorrect|impossible|false|too|not (?:it|right|correct|possible|the answer))\b"
    r"|\s?[-+*/^]\s?(?:\\[a-z]|[b-zB-HJ-Z]\b)"  # 1 + x
)
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
CHANGES = {"half", "halves", "quarter", "quarters", "squared", "cubed", "factorial"} | {
    name + plural
    for name in "third fourth fifth sixth seventh eighth ninth tenth twelfth twentieth hundredth thousandth".split()
    for plural in ("", "s")
}  # words that change the number before them
_GOES_ON = re.compile(rf"\s?(?:\\?%|(?:percent|\\?pi|{'|'.join([*SCALES, *CHANGES])})\b)|[A-Za-z]{{1,12}}\b")


def _last_number(text: str) -> str | None:
    text = plain(text)
    last = max(text.rfind(digit) for digit in "0123456789")
    if last < 0:
        return None
    text = text[max(0, last - MAX_ANSWER) : last + 100]
    formula = [m for m in _FORMULA.finditer(text)][-1:]
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    start, end = numbers[-1].span()
    if formula and formula[0].end() >= end:
        return tidy(formula[0][0])
    for before, after in zip(numbers[-2::-1], numbers[:0:-1], strict=False):
        lead = text[: before.start()].rpartition("\n")[2].strip()
        one_list = "\n" not in text[before.end() : after.start()] or not lead
        if not (one_list and _JOINS.fullmatch(text, before.end(), after.start())):
            break
        start = before.start()
    lead = text[max(0, start - 60) : start]
    if _DENIES.search(lead) or _TAKEN_BACK.match(text, end):
        return None
    sign = text[start] if text[start] in "+-" and lead[-1:].strip() else ""
    if _ANOTHER.search(_TAG_BEFORE.sub("", lead) + sign):
        return None
    opened, closed = text[start - 1 : start] or " ", text[end : end + 1] or " "
    if opened in "^_{([|" or closed in "^_}":  # inside a formula without dollar signs
        start = max(text.rfind(space, 0, start) for space in " \n\t") + 1
        end += len(re.split(r"\s", text[end:], maxsplit=1)[0])
    elif goes_on := _GOES_ON.match(text, end):
        end = goes_on.end()
    return tidy(text[start:end])


# --- what stands around an answer -----------------------------------------------------------------

_SIGNS = str.maketrans(
    {"−": "-", "‐": "-", "‑": "-", "‒": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "π": r"\pi ",
     "√": r"\sqrt ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
     "∅": r"\emptyset ", "°": r"^\circ ", "±": r"\pm ", "∈": r"\in ", "≈": r"\approx ", "⁄": "/", "’": "'", "′": "'"}
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_EN_DASH = re.compile(r"(?<![\w)}\]])–(?=[\d.\\])|(?<=\s)–(?=\s[\d(\\])")
_SIZE = re.compile(r"\\(?:displaystyle|large|Large|LARGE|huge|Huge|bf|rm)(?![A-Za-z])\s?")
_SIGN_IN_TEXT = re.compile(r"\\text\s?\{\s?(\\?[$%€£,.])\s?\}")
_AROUND = re.compile(r"\\(?:text\w*|math\w+|mbox|boldsymbol|underline|operatorname)\s?\{([^{}]*)\}|\{([^{}]*)\}")


def plain(text: str) -> str:
    """A text whose Unicode signs, raised digits and fractions are written in ASCII and LaTeX."""
    if text.isascii():
        return text
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^{" + m[0].translate(_RAISED) + "}", text)
    text = re.sub("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]), text)
    text = unicodedata.normalize("NFKC", text.replace("°", "^\\circ ")).translate(_SIGNS)
    return _EN_DASH.sub("-", text)


def tidy(answer: str) -> str:
    """An answer without surrounding spaces, dollar signs, \\( \\), emphasis, braces or \\text{}, and last full stop."""
    before, answer = None, _SIGN_IN_TEXT.sub(r"\1", _SIZE.sub("", answer))
    while before != answer:
        before = answer
        answer = answer.strip(" \t\r\n*`\u200b")
        for opening, closing in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")):
            if answer.startswith(opening) and answer.endswith(closing) and len(answer) > len(opening + closing):
                answer = answer[len(opening) : -len(closing)]
        answer = answer if answer.endswith("...") else answer.rstrip(".,;:\\ ")
        if whole := _AROUND.fullmatch(answer):
            answer = whole[1] if whole[1] is not None else whole[2]
    return answer
