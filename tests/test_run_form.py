"""RunForm without a browser: text becomes a TrainConfig with its plan, and what cannot be is one line."""

import pytest

import erltool
from erltool import ErltoolError, KLCov, TrainConfig
from erltool.training.memory import GIB, plan_memory
from erltool.widgets import RunForm, RunMonitor


def test_a_form_gives_back_the_configuration_it_was_made_with():
    config = TrainConfig(
        task="countdown:5,20", control=erltool.parse_control("kl-cov:chain+entropy-bonus:coef=0.01"), steps=60,
        temperature=0.9, learning_rate=1e-5, gradient_checkpointing=True,
    )  # fmt: skip
    assert RunForm(config).result == config
    assert RunForm().result == TrainConfig()


def test_its_texts_become_the_configuration_and_its_plan():
    form = RunForm(TrainConfig(device="cpu"))
    before = form.plan["peak"]
    form.choose(policy="Qwen/Qwen2.5-7B", base="nf4", control=KLCov(fraction=0.1, coef=2.0), steps=" 40 ")
    config = form.result
    assert config.control == KLCov(fraction=0.1, coef=2.0) and config.base == "nf4" and config.steps == 40
    assert form.plan["peak"] == plan_memory(config, 256, "cpu").peak / GIB > before
    assert (
        f"about {form.plan['peak']:.2f} GiB at the peak on cpu" in form.sentence
        and "On a GPU of 16 GB" in form.sentence
    )
    twice = [part for part, *_ in form.plan["rows"] if part == "always"]  # in the bar of sampling, and of the update
    assert len(form.picture().axes[0].patches) == len(form.plan["rows"]) + len(twice)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": "nothing-there"}, "policy 'nothing-there': no config.json there; give 'sharpening'"),
        ({"steps": "many"}, "steps='many': must be a whole number"),
        ({"steps": "61"}, "a multiple of updates_per_iteration=4"),
        ({"learning_rate": "nan"}, "learning_rate=nan: must be above 0"),
        ({"control": "kl"}, "control 'kl' is not known: use one of none"),
        ({"base": "nf4", "lora_rank": "0"}, "quantised weights cannot train; use lora_rank above 0"),
        ({"base": "fp3"}, "base='fp3': must be one of none, nf4, int8"),
        ({"device": "cuda"}, "this PyTorch sees no CUDA; use device=cpu"),
        ({"colour": "red"}, "no field 'colour'; there are policy"),
    ],
)
def test_what_cannot_be_is_one_line_and_can_be_mended(changes, words, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    form = RunForm()
    good = form.values
    form.choose(**changes)
    assert words in form.problem and "\n" not in form.problem and form.plan == {}
    data, _ = form._repr_mimebundle_()
    assert data["text/plain"] == form.problem and data["image/png"][:4] == b"\x89PNG"
    with pytest.raises(ErltoolError, match="."):
        _ = form.result
    form.values = good
    assert not form.problem and form.result == TrainConfig()
    assert "not int" in RunForm(42).problem


def test_a_plan_above_what_is_free_says_what_to_lower(monkeypatch):
    monkeypatch.setattr("erltool.training.memory.free_memory", lambda device: 8 * GIB)
    form = RunForm(TrainConfig(policy="Qwen/Qwen2.5-7B", device="cpu"))
    assert "8.0 are free. It would be refused here; use " in form.sentence and not form.problem


def test_a_run_with_an_unknown_policy_fails_in_one_line_with_its_remedy():
    monitor = RunMonitor(TrainConfig(policy="nothing-there")).start()
    assert monitor.wait(60) and monitor.state == "failed"
    assert "give 'sharpening'" in monitor.problem and "\n" not in monitor.problem
