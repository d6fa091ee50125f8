"""A run that is killed, or finds the disk full, between any two changes of its folder: what is read off it afterwards
belongs together, what is evaluated is the newest checkpoint, and the resumed run is the uninterrupted one."""

import errno
import functools
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import erltool
from erltool import ErltoolError, read_run
from erltool.training.start import policy_for_evaluation

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
load_task = functools.cache(erltool.load_task)
_before_change = None  # called before each change that Python makes to a file


def _hook(event, args):
    if _before_change is not None and event in CHANGES:
        _before_change(event, args)


@pytest.fixture
def watch(monkeypatch):
    """Gives the function that is called before each change of a file, and before each fsync."""
    if not hasattr(sys, "_erltool_hook"):  # an audit hook cannot be removed
        sys.addaudithook(_hook)
        sys._erltool_hook = True
    sync = os.fsync

    def watched(function):
        monkeypatch.setattr(os, "fsync", lambda at: (function and function("os.fsync", ()), sync(at))[1])
        monkeypatch.setattr(f"{__name__}._before_change", function)

    yield watched
    watched(None)


@pytest.fixture
def config(tiny_config, monkeypatch):
    monkeypatch.setattr("erltool.tasks.task.Task.reward", lambda self, problem, text: float(len(text) % 2 == 0))
    monkeypatch.setattr("erltool.training.loop.load_task", load_task)
    return tiny_config(steps=6, updates_per_iteration=2, max_response_tokens=4, eval_every=3, checkpoint_every=1)


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        if path.is_file() and path.name not in ("timings.jsonl", ".lock"):
            found.update(path.read_bytes())
    return found.hexdigest()


def killed_at_each_point(watch, run: Path, places: Path, action) -> list[Path]:
    """Folders as a kill before each change that `action` makes would leave `run`, each of another content."""
    kept, seen, busy = [], set(), False

    def keep(event, args):
        nonlocal busy
        if busy or not run.exists():
            return
        busy = True
        if (content := digest(run)) not in seen:
            seen.add(content)
            kept.append(places / f"{len(kept):04d}")
            shutil.copytree(run, kept[-1])
        busy = False

    watch(keep)
    action()
    watch(None)
    return kept


def check_what_is_read(folder: Path) -> None:
    """Metrics and tokens belong together; what is evaluated is the newest checkpoint, which adapter/ then is, too."""
    if not (folder / "config.json").is_file():
        return
    run = read_run(folder)
    steps = run.metrics["step"].tolist()
    assert steps == list(range(1, len(steps) + 1)) and run.skipped_lines <= 1
    if (folder / "tokens.parquet").is_file():
        assert run.tokens["step"].max() <= steps[-1]
    if saved := sorted((folder / "checkpoints").glob("[0-9]*")):
        policy, _ = policy_for_evaluation(str(folder))
        wanted = torch.load(saved[-1] / "state.pt", weights_only=True)["trainable"]
        assert all(torch.equal(p.detach(), wanted[name]) for name, p in policy.trainable().items())
        assert json.loads((folder / "adapter" / "erltool.json").read_text()) == {"step": int(saved[-1].name)}


def check_the_same_run(folder: Path, whole: Path) -> None:
    files = ["metrics.jsonl", "tokens.parquet", "adapter/erltool.json"]
    files += [f"adapter/{path.name}" for path in (whole / "adapter").glob("*.safetensors")]
    for name in files:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (folder, whole)]
    assert names[0] == names[1]  # no temporary file is left


@pytest.mark.parametrize("rank", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_a_kill_anywhere_in_a_run_loses_nothing_that_was_saved(watch, config, tmp_path, rank):
    config = erltool.TrainConfig.from_dict(config.to_dict() | {"lora_rank": rank})
    whole = tmp_path / "whole"
    places = killed_at_each_point(watch, whole, tmp_path / "killed", lambda: list(erltool.train(config, whole)))
    assert len(places) > 40
    check_they_go_on(places, config, whole)


def check_they_go_on(places, config, whole):
    """Each is read, resumed, and then the run that was not cut."""
    for folder in places:
        check_what_is_read(folder)
        list(erltool.train(config, folder, resume=True))
        check_the_same_run(folder, whole)


def test_a_kill_anywhere_in_evaluating_or_resuming_what_was_killed_loses_nothing(watch, config, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(erltool.train(config, whole))
    shutil.copytree(whole, cut)
    # The worst of both ends: an adapter of an older step that is being replaced, lines and tokens without checkpoint.
    shutil.rmtree(cut / "checkpoints" / "000006")
    (cut / "adapter" / "erltool.json").write_text('{"step": 2}')
    os.rename(cut / "adapter", cut / ".adapter.old")
    shutil.copytree(cut / ".adapter.old", cut / ".adapter.new")
    for what, action in (
        ("evaluated", lambda: policy_for_evaluation(str(cut))),
        ("resumed", lambda: list(erltool.train(config, cut, resume=True))),
    ):
        places = killed_at_each_point(watch, cut, tmp_path / what, action)
        assert len(places) > 4
        check_they_go_on(places, config, whole)


def test_a_disk_that_is_full_anywhere_is_one_line_and_loses_nothing(watch, config, tmp_path):
    config = erltool.TrainConfig.from_dict(config.to_dict() | {"steps": 4})
    whole = tmp_path / "whole"
    list(erltool.train(config, whole))
    full, seen = 0, set()
    while True:
        folder, count = tmp_path / f"full{full}", 0

        def refuse(event, args, folder=folder, at=full):
            nonlocal count
            changes_here = event == "os.fsync" or str(args[0]).startswith(str(folder)) and is_write(event, args)
            count += changes_here
            if changes_here and count > at:  # from here on, as a full disk does
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        watch(refuse)
        try:
            list(erltool.train(config, folder))
            break
        except ErltoolError as e:
            assert "cannot write (No space left on device); make room" in str(e) and "\n" not in str(e)
        finally:
            watch(None)
        full += 1
        if (content := digest(folder)) in seen:
            continue
        seen.add(content)
        check_what_is_read(folder)
        list(erltool.train(config, folder, resume=True))
        check_the_same_run(folder, whole)
    assert full > 30 and len(seen) > 10


def is_write(event: str, args) -> bool:
    if event != "open":
        return event in ("os.rename", "os.mkdir", "os.truncate")
    return any(sign in (args[1] or "") for sign in "wax+") or not args[1] and bool(args[2] & os.O_CREAT)


def test_a_full_disk_while_safetensors_writes_is_the_same_line(watch, config, tmp_path, monkeypatch):
    """The writer raises its own error, which is not an OSError."""
    from safetensors import SafetensorError

    from erltool.policies.policy import Policy

    def full(self, folder):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    save = Policy.save
    monkeypatch.setattr(Policy, "save", full)
    with pytest.raises(ErltoolError, match="adapter.new: cannot write .*No space left.*then resume"):
        list(erltool.train(config, tmp_path / "run"))
    monkeypatch.setattr(Policy, "save", save)
    check_what_is_read(tmp_path / "run")


def test_a_run_whose_checkpoints_were_removed_is_evaluated_by_its_adapter(config, tmp_path, caplog):
    run = tmp_path / "run"
    list(erltool.train(config, run))
    wanted = torch.load(sorted((run / "checkpoints").iterdir())[-1] / "state.pt", weights_only=True)["trainable"]
    shutil.rmtree(run / "checkpoints")
    before = digest(run)
    policy, _ = policy_for_evaluation(str(run))
    assert all(torch.equal(p.detach(), wanted[name]) for name, p in policy.trainable().items())
    assert not caplog.messages and digest(run) == before
    with pytest.raises(ErltoolError, match="its checkpoints are gone, so it cannot go on"):
        erltool.train(config, run, resume=True)
    assert digest(run) == before  # its steps are not written again over the old ones
    (run / "adapter" / "erltool.json").unlink()  # as a run that was made before adapters said their step
    policy_for_evaluation(str(run))
    assert caplog.messages == [f"run {run}: adapter/ does not say its step, and there is no checkpoint to compare"]


@pytest.mark.parametrize("stale", [False, True])
def test_an_adapter_without_its_step_is_held_against_the_checkpoint(config, tmp_path, caplog, stale):
    run = tmp_path / "run"
    list(erltool.train(erltool.TrainConfig.from_dict(config.to_dict() | {"steps": 4}), run))
    shutil.copytree(run / "adapter", tmp_path / "old")
    list(erltool.train(config, run, resume=True))
    if stale:
        shutil.rmtree(run / "adapter")
        os.rename(tmp_path / "old", run / "adapter")
    (run / "adapter" / "erltool.json").unlink()
    check_what_is_read(run)
    assert len(caplog.messages) == stale and all("adapter/ was not of the newest" in m for m in caplog.messages)


@pytest.mark.parametrize("damage", ["truncated", "empty", "weights gone", "another shape"])
def test_a_damaged_adapter_is_made_again(config, tmp_path, caplog, damage):
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    list(erltool.train(config, run))
    file = run / "adapter" / "adapter_model.safetensors"
    if damage == "another shape":
        save_file({name: x[..., :1].contiguous() for name, x in load_file(file).items()}, file)
    elif damage == "weights gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 500 if damage == "truncated" else 0])
    check_what_is_read(run)
    assert len(caplog.messages) == 1 and "adapter/ was damaged" in caplog.messages[0]


def test_an_adapter_beside_a_config_that_trains_all_weights_is_one_line(config, tmp_path):
    run = tmp_path / "run"
    list(erltool.train(erltool.TrainConfig.from_dict(config.to_dict() | {"steps": 2, "lora_rank": 2}), run))
    document = json.loads((run / "config.json").read_text())
    document["config"]["lora_rank"] = 0
    (run / "config.json").write_text(json.dumps(document))
    with pytest.raises(ErltoolError, match="state.pt: not a state of this run's policy"):
        policy_for_evaluation(str(run))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ErltoolError, match="holds a LoRA adapter, and lora_rank=0 trains all weights"):
        policy_for_evaluation(str(run))
