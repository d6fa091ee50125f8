"""A trainer's settings as flat keys and values, from a file or a command line.

Nothing is evaluated: YAML is loaded safely, a Python script is parsed and never run, a shell script's variables are
replaced as text. What cannot be known that way is UNKNOWN.
"""

import itertools
import json
import re
import shlex
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from erltool.errors import ErltoolError
from erltool.files import reading
from erltool.logs.check.scripts import UNKNOWN, grpo_call, shell_commands, shell_words
from erltool.text import shown

LARGEST = 4 << 20  # bytes of a file of settings
MOST_KEYS, DEEPEST = 20_000, 30  # a few lines of YAML can stand for billions of keys
SETTINGS = (".toml", ".yaml", ".yml", ".json")
OVERRIDE = re.compile(r"[+~]*([A-Za-z_][\w./@-]*)=(.*)", re.S)
ENVIRONMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
SHELL = re.compile(r"(^|[/a-z])sh$")
INTERPOLATED = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,([^{}]*))?\}")
FRAMEWORKS = ("verl", "TRL", "SkyRL", "prime-rl", "erltool")
# A prefix of keys, or a word of a command, by which a framework is known; the first that fits counts.
KNOWN_BY = {
    "verl": (r"actor_rollout_ref\.|algorithm\.adv_estimator", r"\bverl\b|main_ppo|main_dapo"),
    "SkyRL": (r"trainer\.algorithm\.|generator\.(sampling_params|n_samples_per_prompt)", r"skyrl"),
    "prime-rl": (r"orchestrator\.|trainer\.(optim|loss|model)\.|algo\.type", r"prime[-_]rl|^rl$"),
    "erltool": (r"control$|control\.name|prompts_per_iteration|updates_per_iteration", r"\berltool\b"),
    "TRL": (r"num_generations|num_iterations|epsilon_high|max_completion_length|scale_rewards|reward_(funcs|weights)",
            r"\btrl\b|grpo"),
}  # fmt: skip
# The same of trainers with keys of these names and other defaults or meanings.
OTHERS = {
    "ms-swift": (r"rlhf_type$|(train|tuner)_type$", r"(^|/)swift$|\bswift[./]"),
    "LLaMA-Factory": (r"finetuning_type$", r"llamafactory"),
    "OpenRLHF": (r"actor_learning_rate$|micro_rollout_batch_size$", r"openrlhf"),
    "another trainer than GRPO's": (r"(?!)", r"(^|[/._])(sft|dpo|kto|orpo|rloo|gkd)(_trainer)?(\.py)?$"),
}
HYDRAS = {"-cn": "--config_name", "-cp": "--config_path", "-cd": "--config_dir"}


@dataclass(frozen=True)
class Raw:
    """Settings as their framework names them."""

    framework: str
    values: Mapping[str, object]
    """Flat keys, dotted, with "_" for "-"; UNKNOWN for what only a run would tell."""
    typed: bool = True
    """Whether somebody wrote each key, as on a command line. A file may be a dump of all defaults."""
    complete: bool = True
    """False where further settings may come from elsewhere, so that no default holds."""
    peft: bool | None = None
    """Whether a LoRA configuration is in sight; None where it would be elsewhere."""
    passed_over: int = 0
    """Other commands of a script that train by reinforcement learning, or other configurations, that were not read."""
    recognised: bool = True
    """Whether keys or words show the framework; False where only --framework says it."""


@dataclass
class _Found:
    values: dict[str, object] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    typed: bool = True
    complete: bool = True
    peft: bool | None = None
    passed_over: int = 0


def read_settings(words: Sequence[str], framework: str | None = None) -> Raw:
    """The settings of a file, a run's folder, or a command line in one word or in several.

    Raises ErltoolError for a file that is missing or of another kind, and where no framework is recognised.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise ErltoolError(f"framework {shown(framework)}: use one of {', '.join(FRAMEWORKS)}")
    only = words[0] if len(words) == 1 else ""
    if only and (_is_file(only) or not re.search(r"\s|=", only)):
        found, what = _of_file(_file_in(Path(only))), only
    else:
        found, what = _of_command(_split(only) if only else list(words)), "the command"
    seen = _recognised(found, KNOWN_BY)
    chosen = framework or seen
    if framework is None and (other := _recognised(found, OTHERS)):
        raise ErltoolError(
            f"check: {shown(what)}: settings of {other}, which check does not know; --framework takes them for one of "
            f"{', '.join(FRAMEWORKS)}"
        )
    if chosen is None:
        raise ErltoolError(
            f"check: {shown(what)}: settings of no framework that is known; name it with --framework, one of "
            f"{', '.join(FRAMEWORKS)}"
        )
    values = _resolved(found.values)
    return Raw(chosen, values, found.typed, found.complete, found.peft, found.passed_over, seen is not None)


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as e:
        raise ErltoolError(f"check: the command cannot be split into words ({e}); close its quotes") from e


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("config.json", ".hydra/config.yaml", "config.yaml", "rl.toml"):
        if (path / name).is_file():
            return path / name
    raise ErltoolError(f"check: {shown(path)}: a folder without config.json or config.yaml; give a file")


def _of_file(path: Path) -> _Found:
    if not path.exists():
        raise ErltoolError(f"check: {shown(path)}: no such file; give a file, or a command in quotes")
    with reading(path):
        if path.stat().st_size > LARGEST:
            raise ErltoolError(f"check: {shown(path)}: over {LARGEST >> 20} MiB; no file of settings is")
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    if path.suffix == ".py":
        call = grpo_call(text, path)
        words = ["trl"] if "GRPOConfig" in text else []
        return _Found(call.values, words, True, call.complete, call.peft, call.passed_over)
    document = _document(path, text)
    if document is None:
        return _of_script(shell_commands(text, path))
    if isinstance(document.get("config"), dict):  # a run of ours
        document = document["config"]
    elif document and all(isinstance(v, dict) and "value" in v for v in document.values() if v is not None):
        document = {k: v["value"] for k, v in document.items() if isinstance(v, dict)}  # W&B's config.yaml
    return _Found(dict(_flat(document, path)), [], False)


def _document(path: Path, text: str) -> dict | None:
    """The mapping that a YAML, JSON or TOML file holds; None for a script."""
    loaders = {".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".toml": tomllib.loads}
    if path.suffix not in loaders:
        return None
    try:
        document = loaders[path.suffix](text)
    except (ValueError, yaml.YAMLError, RecursionError) as e:
        raise ErltoolError(f"check: {shown(path)}: no {path.suffix[1:].upper()} ({shown(e, 120)}); mend it") from e
    if not isinstance(document, dict):
        raise ErltoolError(f"check: {shown(path)}: must hold keys with values, not {type(document).__name__}")
    return document


def _flat(document: Mapping, path: Path) -> Iterator[tuple[str, object]]:
    """Dotted keys with their values; members of a list are counted from 0."""
    stack: list[tuple[str, object, int]] = [("", document, 0)]
    for _ in range(MOST_KEYS):
        if not stack:
            return
        name, value, depth = stack.pop()
        if isinstance(value, list) and any(isinstance(member, dict) for member in value):
            value = dict(enumerate(value))
        if not isinstance(value, dict) or (not value and name):
            yield name, value
        elif depth < DEEPEST and len(value) <= MOST_KEYS:
            prefix = f"{name}." if name else ""
            stack += [(prefix + str(k).replace("-", "_"), v, depth + 1) for k, v in value.items()]
        else:
            break
    raise ErltoolError(f"check: {shown(path)}: nested too deep, or over {MOST_KEYS:,} keys; no settings are")


def _of_script(commands: Sequence[Sequence[str]]) -> _Found:
    """The settings of the first command that trains by reinforcement learning, or else of the first."""
    training = [command for command in commands if _trains(command)]
    found = _of_command((training or commands)[0])
    found.passed_over += max(0, len(training) - 1)
    return found


def _trains(command: Sequence[str]) -> bool:
    """Whether a command is known for one of the frameworks, without the files that it names."""
    known = _Found()
    for kind, name, text in _parts(command):
        if kind in ("setting", "switch"):
            known.values[name] = text
        elif kind == "word":
            known.words.append(name)
    return _recognised(known, KNOWN_BY) is not None and _recognised(known, OTHERS) is None


def _of_command(words: Sequence[str]) -> _Found:
    """The settings, switches and files of a command.

    Of two files the later one counts, and what stands in the command itself counts before files.
    """
    found = _Found()
    of_files: dict[str, object] = {}
    for kind, name, text in _parts(words):
        if kind == "file":
            of_files |= _of_named(name, found)
        elif kind == "setting":
            found.values |= _override(name, text)
        elif kind == "switch":
            found.values[name] = True
        elif kind == "unknown":  # it may stand for any settings
            found.complete = False
        else:
            found.words.append(name)
    named = {key: found.values.get(key) for key in ("config_name", "config_path", "config_dir")}
    if any(value not in (None, "ppo_trainer") for value in named.values()):
        found.complete = False  # Hydra finds their files in places that only a run knows
    found.values = of_files | found.values
    return found


def _parts(words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """What a command consists of, as (kind, name, text).

    "setting": key=value, or --key value. "switch": --key alone. "file": `@ file`, --config file, or a script.
    "word": any other word, a script among them. "unknown": a word that only a run would tell.
    """
    rest = deque(itertools.dropwhile(ENVIRONMENT.match, words))
    last, in_script = "", False
    while rest:
        word = rest.popleft()
        word = HYDRAS.get(word, word)
        if word in ("-c", "-lc") and rest and SHELL.search(last):
            rest.extendleft(reversed(shell_words(rest.popleft())))
        elif UNKNOWN in word.partition("=")[0]:
            yield "unknown", word, ""
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            # The first script is a word of its own, behind a switch of its launcher.
            if not equals and rest and _is_value(rest[0]) and (in_script or not rest[0].endswith(".py")):
                value, equals = rest.popleft(), "="
            if name == "config" and (UNKNOWN in value or Path(value).suffix in SETTINGS):
                yield "file", value, ""
            yield ("setting", name, value) if equals else ("switch", name, "")
        elif override := OVERRIDE.fullmatch(word):
            yield "setting", override[1].replace("-", "_"), override[2]
        elif word.startswith("@"):
            yield "file", word[1:] or (rest.popleft() if rest else ""), ""
        else:
            if word.endswith((".toml", ".yaml", ".py")) and _is_file(word):
                yield "file", word, ""
            yield "word", word, ""
            last, in_script = word, in_script or word.endswith(".py")


def _is_value(word: str) -> bool:
    """Whether a word behind --key is its value."""
    return not word.startswith("--") and word != "@"


def _of_named(path: str, found: _Found) -> Mapping[str, object]:
    """The settings of a file that a command names. Raises ErltoolError where it is not there."""
    if UNKNOWN in path:
        found.complete = False
        return {}
    if not _is_file(path):
        raise ErltoolError(f"check: {shown(path)}: no such file, which the command reads; check it where the file is")
    inside = _of_file(Path(path))
    found.words += inside.words
    found.peft = found.peft if inside.peft is None else inside.peft
    found.complete &= inside.complete
    found.passed_over += inside.passed_over
    return inside.values


def _override(key: str, text: str) -> dict[str, object]:
    """A setting of a command, or several in braces, with Hydra's colons or YAML's."""
    braced = text.strip().startswith("{") and UNKNOWN not in text
    value = _value(re.sub(r"(?<=\w):(?=[^\s/])", ": ", text) if braced else text)
    return dict(_flat({key: value}, Path("the command"))) if isinstance(value, dict) and value else {key: value}


def _value(text: str) -> object:
    """A value as Hydra and YAML read it; text in quotes without them."""
    if UNKNOWN in text:
        return UNKNOWN
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _recognised(found: _Found, marks: Mapping[str, tuple[str, str]]) -> str | None:
    for name, (key, _) in marks.items():
        if any(re.match(key, k) for k in found.values):
            return name
    return next((n for n, (_, word) in marks.items() if any(re.search(word, w) for w in found.words)), None)


def _resolved(values: Mapping[str, object]) -> dict[str, object]:
    """The values with references to other keys (${a.b}, ${oc.select:a.b,default}) replaced."""
    done = {}
    for key, value in values.items():
        for _ in range(DEEPEST):
            if not (isinstance(value, str) and "${" in value):
                break
            match = INTERPOLATED.fullmatch(value.strip())
            known = match is not None and (match[1] in values or match[2] is not None)
            value = (values.get(match[1], _value(match[2] or "")) if match else UNKNOWN) if known else UNKNOWN
        done[key] = value
    return done
