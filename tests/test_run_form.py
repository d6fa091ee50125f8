"""RunForm without a browser: text becomes a TrainConfig with its plan, and what cannot be is one line."""

import time

import pytest

import erltool
from erltool import ErltoolError, KLCov, TrainConfig, parse_control
from erltool.controls.catalog import CONTROLS
from erltool.training.memory import GIB, plan_memory
from erltool.widgets import RunForm, RunMonitor
from erltool.widgets.run_choices import CHOICES, STARTS


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
    sizes = [size for _, size in form.plan["bar"]]
    assert sum(sizes) == pytest.approx(form.plan["peak"], abs=0.01) and min(sizes) > 0.01
    bars = form.picture().axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx(sizes)


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
    assert words in form.wrong[next(iter(changes)) if "colour" not in changes else ""]
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


def test_what_is_wrong_stands_at_each_field():
    form = RunForm().choose(learning_rate="fast", steps="61", control="kl")
    assert {name: form.wrong[name].split(":")[0] for name in form.wrong} == {
        "learning_rate": "learning_rate='fast'", "steps": "steps=61", "control": "control 'kl' is not known"
    }  # fmt: skip
    assert form.problem in form.wrong.values()
    assert RunForm().choose(learning_rate="0.1").wrong == {}


def test_each_entry_of_a_menu_says_what_it_is_and_can_be_chosen():
    for name, entries in CHOICES.items():
        for entry, sentence in entries.items():
            assert 8 < len(sentence) < 130 and "\n" not in sentence, entry
        field = next(f for f in RunForm().fields if f["name"] == name)
        assert field["menu"] and field["offered"] == [[entry, sentence] for entry, sentence in entries.items()]
    assert all(parse_control(text) for text in CHOICES["control"])
    assert set(CONTROLS) - {text.partition(":")[0] for text in CHOICES["control"]} == set()


@pytest.mark.parametrize("name", STARTS)
def test_a_start_is_a_configuration_that_can_train(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (80 * GIB, 80 * GIB))
    form = RunForm().choose(**STARTS[name])
    assert not form.problem and all(form.values[k] == v for k, v in STARTS[name].items())


def test_the_time_is_that_of_one_measured_iteration(tiny_config):
    config = tiny_config(steps=40, eval_every=5)
    form = RunForm(config)
    assert form.pace == {} and "to finish" not in form.sentence
    form.measure()
    pace = dict(form.pace)
    iterations = 40 // config.updates_per_iteration
    assert pace["iteration"] > 0 and f"{iterations} iterations of {pace['iteration']:.2g} s, measured" in pace["words"]
    assert f"and {-(-iterations // 5) + 1} evaluations" in form.sentence
    form.choose(steps="80")
    assert form.pace["iteration"] == pace["iteration"] and f"{2 * iterations} iterations" in form.pace["words"]
    form.choose(group_size=str(config.group_size + 1))
    assert form.pace == {}
    form.choose(group_size=str(config.group_size))
    assert form.pace["iteration"] == pace["iteration"]


def test_a_button_measures_beside_the_notebook_and_nothing_else_is_obeyed(tiny_config, monkeypatch):
    form = RunForm(tiny_config())
    for content in ({"command": "train"}, {}, "measure", None):
        form._handle_custom_msg(content, [])
    assert form.pace == {}
    form._handle_custom_msg({"command": "measure"}, [])
    end = time.monotonic() + 60
    while "iteration" not in form.pace:
        assert time.monotonic() < end
        time.sleep(0.01)

    def broken(*args):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("erltool.training.loop.train", broken)
    failed = RunForm(tiny_config()).measure()
    assert failed.problem == "RuntimeError: out of memory" and failed.pace == {} and failed.wrong[""] == failed.problem
    assert RunForm().choose(steps="x").measure().pace == {}
