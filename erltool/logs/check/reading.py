"""A trainer's settings as flat keys and values, from a file or a command line.

Nothing is evaluated: YAML is loaded safely, a Python script is parsed and never run, a shell script's variables are
replaced as text. What cannot be known that way is UNKNOWN.
"""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from erltool.errors import ErltoolError
from erltool.files import reading
from erltool.logs.check.scripts import UNKNOWN, grpo_call, shell_command
from erltool.text import shown

LARGEST = 4 << 20  # bytes of a file of settings
MOST_KEYS, DEEPEST = 20_000, 30  # a few lines of YAML can stand for billions of keys
OVERRIDE = re.compile(r"[+~]*([A-Za-z_][\w./@-]*)=(.*)", re.S)
ENVIRONMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
INTERPOLATED = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,([^{}]*))?\}")
FRAMEWORKS = ("verl", "TRL", "SkyRL", "prime-rl", "erltool")
# A prefix of keys, or a word of a command, by which a framework is known; the first that fits counts.
KNOWN_BY = {
    "verl": (r"actor_rollout_ref\.|algorithm\.adv_estimator", r"\bverl\b|main_ppo|main_dapo"),
    "SkyRL": (r"trainer\.algorithm\.|generator\.(sampling_params|n_samples_per_prompt)", r"skyrl"),
    "prime-rl": (r"orchestrator\.|trainer\.(optim|loss|model)\.|algo\.type", r"prime[-_]rl|^rl$"),
    "erltool": (r"control$|control\.name|prompts_per_iteration|updates_per_iteration", r"\berltool\b"),
    "TRL": (r"num_generations|per_device_train_batch_size|max_completion_length|scale_rewards", r"\btrl\b|grpo"),
}


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


@dataclass
class _Found:
    values: dict[str, object] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    typed: bool = True
    complete: bool = True
    peft: bool | None = None


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
    chosen = framework or _recognised(found)
    if chosen is None:
        raise ErltoolError(
            f"check: {shown(what)}: settings of no framework that is known; name it with --framework, one of "
            f"{', '.join(FRAMEWORKS)}"
        )
    return Raw(chosen, _resolved(found.values), found.typed, found.complete, found.peft)


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
        values, complete, peft = grpo_call(text, path)
        return _Found(values, ["trl"], True, complete, peft)
    document = _document(path, text)
    if document is None:
        return _of_command(shell_command(text, path))
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


def _of_command(words: list[str]) -> _Found:
    """The overrides (key=value), flags (--key value) and files (`@ file`, --config file, a script) of a command."""
    found, rest = _Found(), list(words)
    while rest and ENVIRONMENT.match(rest[0]):
        rest.pop(0)
    while rest:
        word = rest.pop(0)
        if UNKNOWN in word.partition("=")[0]:  # it may stand for any settings
            found.complete = False
        elif word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if not equals and rest and not rest[0].startswith("--") and rest[0] != "@":
                value, equals = rest.pop(0), "="
            name = key.replace("-", "_")
            if name == "config" and _is_file(value):
                found.values = _of_file(Path(value)).values | found.values
            found.values[name] = _value(value) if equals else True
        elif override := OVERRIDE.fullmatch(word):
            found.values[override[1].replace("-", "_")] = _value(override[2])
        else:
            path = word[1:] or (rest.pop(0) if rest else "") if word.startswith("@") else word
            if path.endswith((".toml", ".yaml", ".py")) and _is_file(path):
                inside = _of_file(Path(path))
                found.values, found.peft = inside.values | found.values, inside.peft
                found.complete &= inside.complete
            found.words.append(word)
    return found


def _value(text: str) -> object:
    """A value as Hydra and YAML read it; text in quotes without them."""
    if UNKNOWN in text:
        return UNKNOWN
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _recognised(found: _Found) -> str | None:
    keys = list(found.values)
    for name, (key, _) in KNOWN_BY.items():
        if any(re.match(key, k) for k in keys):
            return name
    return next((n for n, (_, word) in KNOWN_BY.items() if any(re.search(word, w) for w in found.words)), None)


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
