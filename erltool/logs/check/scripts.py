"""Settings in scripts: the command of a shell script, the GRPOConfig(...) of a Python script. Neither is run."""

import ast
import itertools
import operator
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from erltool.errors import ErltoolError
from erltool.text import shown

UNKNOWN = "\0unknown"  # stands for a value that only a run would tell; no file's text holds a NUL
ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
ARRAY = re.compile(r"[ \t]*([A-Za-z_]\w*)(\+?)=\((.*)", re.S)
ARITHMETIC = re.compile(r"\$\(\(([^()]*(?:\([^()]*\)[^()]*)*)\)\)")
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::?-([^{}]*))?\}|\$([A-Za-z_]\w*)")
SUBSTITUTION = re.compile(r"\$\(.*?\)|`.*?`|\$\{[^{}]*\}(?!\w)|\$[0-9*#?]")
PARTS = re.compile(r"&&|\|\||;|\b(?:then|else|do)\b")
OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
ROUNDS = 20  # of replacing variables in variables
LONGEST = 1 << 16  # characters of a word; a variable that doubles itself must not fill the memory


def shell_commands(text: str, path: Path) -> list[list[str]]:
    """Each command with settings in a shell script, with variables and arrays replaced; most settings first.

    What is set inside an `if` or a loop is UNKNOWN. Raises ErltoolError where no line holds a setting.
    """
    text = re.sub(r"\\\r?\n", " ", text.replace("\0", ""))
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.M)
    variables: dict[str, str] = {}
    arrays: dict[str, list[str]] = {}
    commands: list[list[str]] = []
    inside = 0  # blocks that may or may not be run
    for statement in _statements(text):
        inside = max(0, inside + _opened(statement))
        if match := ARRAY.match(statement):
            members = [_expanded(w, variables) for w in shell_words(match[3].rstrip().removesuffix(")"))]
            added = [w.partition("=")[0] + f"={UNKNOWN}" for w in members] if inside else members
            arrays[match[1]] = [*(arrays.get(match[1], []) if match[2] or inside else []), *added]
            continue
        words = shell_words(statement)
        bare = words[1:] if words[:1] in (["export"], ["local"], ["readonly"]) else words
        if len(bare) == 1 and (match := ASSIGNED.fullmatch(bare[0])):
            value = _expanded(match[2], variables)
            variables[match[1]] = UNKNOWN if inside and variables.get(match[1]) != value else value
            continue
        parts = PARTS.split(statement)
        for part in parts if len(parts) > 1 else ():  # other commands of the line may decide about it
            if match := ASSIGNED.fullmatch(part.strip().removeprefix("export ")):
                variables[match[1]] = UNKNOWN
        command = [w for word in words for w in arrays.get(_array_name(word), _split_variable(word, variables))]
        if _settings(command):
            commands.append([word for word in command if word != "$@"])
    if not commands:
        raise ErltoolError(f"check: {shown(path)}: no command with settings in it; give the trainer's file or command")
    return sorted(commands, key=_settings, reverse=True)


def _statements(text: str) -> Iterator[str]:
    """Lines of a script that hold something; an array in parentheses is one, over several lines."""
    lines = iter(text.splitlines())
    for line in lines:
        if ARRAY.match(line) and not line.rstrip().endswith(")"):
            rest = itertools.takewhile(lambda later: later.strip() != ")", lines)
            line = "\n".join([line, *rest, ")"])
        if line.strip():
            yield line.rstrip().rstrip(";")


def _opened(statement: str) -> int:
    """Blocks that a line opens, less those that it closes."""
    first = statement.split(maxsplit=1)[0].rstrip(";")
    closed = len(re.findall(r"(?:^|[;\s])(?:fi|done|esac)(?=[;\s]|$)", statement))
    return (first in ("if", "for", "while", "until", "case")) - closed


def shell_words(text: str) -> list[str]:
    """The words of a line as a shell splits it, or else at spaces."""
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # quotes that are closed on another line
        return text.split()


def _split_variable(word: str, variables: Mapping[str, str]) -> list[str]:
    """The word with its variables; the words of a variable that stands alone."""
    value = _expanded(word, variables)
    return shell_words(value) if VARIABLE.fullmatch(word) else [value]


def _array_name(word: str) -> str:
    match = re.fullmatch(r"\$\{(\w+)\[[@*]\]\}", word)
    return match[1] if match else ""


def _settings(words: list[str]) -> int:
    return sum("=" in word or word.startswith("--") or word.startswith("@") for word in words)


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    """A word with its variables; UNKNOWN for a variable or a substitution that only a shell would know."""

    def of(match: re.Match) -> str:
        return variables.get(match[1] or match[3], UNKNOWN if match[2] is None else match[2])

    for _ in range(ROUNDS):
        before, word = word, VARIABLE.sub(of, word)
        if word == before or len(word) > LONGEST:
            break
    word = ARITHMETIC.sub(lambda match: _arithmetic(match[1]), word)
    return UNKNOWN if len(word) > LONGEST else SUBSTITUTION.sub(_unknown, word)


def _unknown(match: re.Match) -> str:
    """A substitution is not known, but ${a.b} is a reference of Hydra's."""
    return match[0] if re.fullmatch(r"\$\{[\w.:,]*[.:][\w.:,]*\}", match[0]) else UNKNOWN


def _arithmetic(text: str) -> str:
    """The value of a sum of whole numbers, of at most a few operations."""
    try:
        return str(_number(ast.parse(text.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return UNKNOWN


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1 << 62:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](_number(node.left), _number(node.right))
        if abs(value) < 1 << 62:
            return value
    raise ValueError("no sum of whole numbers")


# --- Python --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GRPOCall:
    """What a script says of its GRPOConfig(...)."""

    values: dict[str, object]
    complete: bool
    """Whether all arguments are in sight."""
    peft: bool
    """Whether a LoRA configuration is."""
    passed_over: int
    """Other GRPOConfig(...) of the script."""


def grpo_call(text: str, path: Path) -> GRPOCall:
    """The arguments of the script's GRPOConfig(...), of several of the one with the most.

    Arguments that are no literals, nor names that the script sets to one literal, are UNKNOWN. A script that makes its
    GRPOConfig from the command line has none in sight. Raises ErltoolError for a script that Python cannot parse.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ErltoolError(f"check: {shown(path)}: no Python that can be parsed ({shown(e, 100)}); mend it") from e
    names = _literals(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    configs = [call for call in calls if _name(call.func).endswith("GRPOConfig")]
    configs.sort(key=lambda call: len(call.keywords), reverse=True)
    lora = next((c for c in calls if _name(c.func) in ("LoraConfig", "get_peft_model")), None)
    values: dict[str, object] = {}
    complete = bool(configs)
    for config in configs[:1]:
        values, complete = _arguments(config, names)
        values |= dict.fromkeys(_set_later(tree), UNKNOWN)
    if lora is not None:
        inside = _arguments(lora, names)[0]
        values |= {"use_peft": True, "lora_r": inside.get("r", 8), "lora_dropout": inside.get("lora_dropout", 0.0)}
    return GRPOCall(values, complete, lora is not None, max(0, len(configs) - 1))


def _set_later(tree: ast.Module) -> set[str]:
    """Attributes that a script sets, as in args.learning_rate = 1e-5."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in nodes}


def _literals(tree: ast.Module) -> dict[str, object]:
    """Names that are bound once, each to a literal."""
    nodes = list(ast.walk(tree))
    bound = Counter(n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    bound.update(n.arg for n in nodes if isinstance(n, ast.arg))
    values: dict[str, object] = {}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (t.id for t in targets if isinstance(t, ast.Name)):
                values[name] = _literal(node.value, {}) if bound[name] == 1 else UNKNOWN
    return values


def _literal(node: ast.expr, names: Mapping[str, object]) -> object:
    if isinstance(node, ast.Name):
        return names.get(node.id, UNKNOWN)
    if isinstance(node, ast.Call) and _name(node.func) == "dict" and not node.args:
        pairs = {k.arg: _literal(k.value, names) for k in node.keywords if k.arg}
        return pairs if len(pairs) == len(node.keywords) else UNKNOWN
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


def _arguments(call: ast.Call, names: Mapping[str, object]) -> tuple[dict[str, object], bool]:
    """Keywords of a call; and whether there are no others, such as those of **kwargs."""
    values: dict[str, object] = {}
    complete = True
    for keyword in call.keywords:
        value = _literal(keyword.value, names)
        if keyword.arg is not None:
            values[keyword.arg] = value
        elif isinstance(value, dict):
            values |= {str(k): v for k, v in value.items()}
        else:
            complete = False
    return values, complete


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
