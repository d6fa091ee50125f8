"""Widgets as values: state, result, picture and fallbacks, without a browser."""

import gc
import io
import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import erltool
import erltool.widgets
from erltool import ErltoolError
from erltool.entropy import bandit
from erltool.entropy.tokens import Tokens
from erltool.resources import shipped
from erltool.tables import Table
from erltool.widgets import EntropyLab, TokenInspector
from erltool.widgets.token_groups import rows_of, same_place
from erltool.widgets.token_inspector import visible
from erltool.widgets.token_picture import _colours

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "$\\frac$", "$$"]


@pytest.mark.parametrize("method", bandit.METHODS)
def test_entropy_lab_is_the_bandit(method):
    lab = EntropyLab((0.6, 0.3, 0.1), (1.0, 0.2, -0.5), eta=0.3, method=method)
    z, values = (torch.tensor(x, dtype=torch.float64) for x in (lab.logits, lab.advantages))
    result = lab.result
    change = bandit.step(z, values, 0.3, method)
    assert result.probabilities == pytest.approx([0.6, 0.3, 0.1]) and len(result.history) == 0
    assert result.entropy == pytest.approx(bandit.entropy(z).item(), abs=1e-12)
    assert result.exact == pytest.approx(bandit.entropy_change(z, change).item(), abs=1e-12)
    assert result.predicted == pytest.approx(bandit.predicted_change(z, values, 0.3, method).item(), abs=1e-12)
    lab.step(3)
    for _ in range(3):
        z = z + bandit.step(z, values, 0.3, method)
    assert lab.result.entropy == pytest.approx(bandit.entropy(z).item(), abs=1e-10)
    history = lab.result.history
    assert history.shape == (3, 3) and history[0, 0] + history[:, 1].sum() == pytest.approx(lab.result.entropy)


def test_entropy_lab_is_set_by_its_traits_and_says_its_numbers():
    lab = EntropyLab()
    before = lab.sentence
    lab.eta, lab.method, lab.advantages = 1.0, "pg", [0.0, 0.0, 1.0, 0.0]
    assert lab.sentence != before and f"{lab.result.entropy:.3f}" in lab.sentence
    lab.advantages = [1.0] * 4
    assert lab.result.exact == pytest.approx(0) and lab.result.predicted == pytest.approx(0)


def test_its_picture_shows_the_state_and_the_bundle_reads_without_a_kernel():
    lab = EntropyLab().step(5)
    bars, lines = lab.picture().axes
    assert [p.get_height() for p in bars.patches] == pytest.approx(lab.result.probabilities)
    assert lines.lines[0].get_ydata() == pytest.approx([*lab.result.history[:, 0], lab.result.entropy])
    data, _ = lab._repr_mimebundle_()
    assert data["text/plain"] == lab.sentence and "application/vnd.jupyter.widget-view+json" in data
    assert matplotlib.image.imread(io.BytesIO(data["image/png"])).shape[2] == 4


@pytest.mark.parametrize(
    "bad",
    [dict(probabilities=[1.0], advantages=[1.0]), dict(probabilities=[0.5, 0.0], advantages=[1.0, 0.0]),
     dict(probabilities="abcd"), dict(advantages=None), dict(names=["one"]),
     dict(probabilities=[0.5, float("nan")], advantages=[1.0, 0.0]), dict(advantages=[1.0]),
     dict(advantages=[1.0, 0.0, 0.0, float("inf")])],
)  # fmt: skip
def test_entropy_lab_says_what_is_wrong_in_the_widget(bad):
    lab = EntropyLab(**bad)
    assert lab.problem.startswith("EntropyLab: ") and lab._repr_mimebundle_()[0]["text/plain"] == lab.problem
    assert [t.get_text() for t in lab.picture().axes[0].texts] == [lab.problem]
    with pytest.raises(ErltoolError, match="EntropyLab: "):
        lab.result  # noqa: B018


def test_names_are_only_ever_text():
    lab = EntropyLab(names=HOSTILE)
    assert lab.names == HOSTILE
    lab.picture().savefig(io.BytesIO(), format="png")
    for file in (Path(erltool.__file__).parent / "widgets").glob("*.js"):
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not [w for w in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "http") if w in text]


def test_certain_policies_do_not_break_it():
    lab = EntropyLab((1 - 1e-12, 1e-12), (1.0, -1.0), eta=2.0).step(50)
    assert np.isfinite(lab.result.entropy) and lab.result.entropy >= 0
    lab.picture()


# --- TokenInspector ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    return erltool.read_run(shipped("data/runs/demo-none"))


def as_batch(table):
    """The table's tokens as one padded batch of the mathematics: log-probs, old, advantages, mask."""
    groups = [g for _, g in table.groupby(["prompt_index", "response_index"], sort=False)]
    mask = torch.zeros(len(groups), max(map(len, groups)), dtype=torch.bool)
    for row, g in zip(mask, groups, strict=True):
        row[: len(g)] = True
    blank = torch.zeros(mask.shape)
    columns = (torch.tensor(table[c].to_numpy(np.float32)) for c in ("log_prob", "old_log_prob", "advantage"))
    return [blank.masked_scatter(mask, c) for c in columns], mask


def test_what_the_sliders_take_is_what_the_controls_take(run):
    inspector = TokenInspector(run, step=4, kl_fraction=0.1, clip_fraction=0.05, low=0.1, high=5.0)
    (log_probs, old, advantages), mask = as_batch(inspector.result.tokens)
    # The recorded covariance is centred over the whole update; select by it needs the same tokens: centre here too.
    table = inspector.result.tokens.assign(
        covariance=erltool.token_covariance(advantages, log_probs, mask)[mask].numpy()
    )
    inspector = TokenInspector(table, kl_fraction=0.1, clip_fraction=0.05, low=0.1, high=5.0)
    tokens = Tokens(log_probs, old, advantages, mask)
    expected = erltool.KLCov(0.1).choose(tokens).selected[mask].numpy()
    assert inspector.result.tokens["kl_cov"].sum() == expected.sum()
    assert inspector.result.tokens["covariance"][inspector.result.tokens["kl_cov"]].min() == pytest.approx(
        table["covariance"][expected].min()
    )
    taken = inspector.result.tokens[inspector.result.tokens["clip_cov"]]
    assert 0 < len(taken) <= int(0.05 * len(table)) and taken["covariance"].between(0.1, 5.0).all()
    assert inspector.result.covariance == pytest.approx(
        erltool.mean_covariance(advantages, log_probs, mask).item(), abs=1e-5
    )
    assert inspector.result.covariance_clip_cov < inspector.result.covariance


def test_kl_cov_shows_no_effect_on_the_first_update_after_sampling(run):
    first = TokenInspector(run.tokens.assign(old_log_prob=run.tokens["log_prob"]), kl_fraction=0.3, coef=5.0).result
    assert first.covariance_kl_cov == first.covariance and first.tokens["kl_cov"].any()


def cells(picture):
    """Colours of the tokens that a picture draws, and their texts, row by row."""
    (axes, *_) = picture.axes
    return [p.get_facecolor()[:3] for p in axes.patches], [t.get_text() for t in axes.texts]


def test_it_follows_its_traits_and_has_a_static_twin(run):
    inspector = TokenInspector(run)
    before = inspector.shown["texts"]
    inspector.step = inspector.steps[0]
    assert inspector.shown["texts"] != before and set(inspector.result.tokens["step"]) == {inspector.steps[0]}
    inspector.response, inspector.quantity = 3, "entropy"
    tokens, rows = inspector.result.tokens, rows_of(inspector.shown, 3)
    begins = [*inspector.shown["begins"], len(tokens)]
    values = np.concatenate([tokens["entropy"].to_numpy(float)[begins[r] : begins[r + 1]] for r in rows])
    low, high = (np.sort(tokens["entropy"].to_numpy(float))[round(s * (len(tokens) - 1))] for s in (0.02, 0.98))
    drawn = matplotlib.colormaps["cividis"](np.clip((values - low) / (high - low), 0, 1))[:, :3]
    assert np.array(cells(inspector.picture())[0]) == pytest.approx(drawn, abs=0.01) and len(drawn) > 20
    data, _ = inspector._repr_mimebundle_()
    assert data["image/png"][:4] == b"\x89PNG" and data["text/plain"] == inspector.sentence
    assert type(inspector.result.tokens) is Table and f"{inspector.result.covariance:+.4f}" in inspector.sentence


def test_the_picture_has_the_group_by_falling_reward_and_outlines_the_chosen_token(run):
    inspector = TokenInspector(run)
    rows = rows_of(inspector.shown, inspector.response)
    told = [t for t in cells(inspector.picture())[1] if re.match(r"[01]  \w", t)]
    assert [float(t[0]) for t in told] == sorted((inspector.shown["rewards"][r] for r in rows), reverse=True)
    assert len(told) == 8 and {float(t[0]) for t in told} == {0, 1}
    outlined = [p for p in inspector.picture().axes[0].patches if p.get_linewidth() > 2]
    assert len(outlined) == 1
    inspector.keep = "wrong"
    assert all(t[0] == "0" for t in cells(inspector.picture())[1] if re.match(r"[01]  \w", t))
    inspector.keep = "strategy nothing"
    assert not cells(inspector.picture())[0]  # nothing passes: a picture without tokens


def test_a_live_step_can_be_inspected(tiny_config):
    step = next(iter(erltool.train(tiny_config(eval_every=0))))
    inspector = TokenInspector(step)
    assert len(inspector.result.tokens) == step.metrics["response_tokens"]
    assert inspector.result.covariance == pytest.approx(step.metrics["mean_covariance"], abs=1e-5)


CHAIN_STEP = erltool.TrainConfig(
    task="chain:sharpening", policy="sharpening", lora_rank=0, steps=1, updates_per_iteration=1,
    prompts_per_iteration=4, group_size=4, max_response_tokens=28, eval_every=0, record_every=0, device="cpu",
)  # fmt: skip


def test_forks_are_marked_where_the_task_knows_them(run):
    step = next(erltool.train(CHAIN_STEP))
    inspector = TokenInspector(step)
    forks = np.frombuffer(inspector.shown["forks"], np.float32)
    assert forks.sum() == step.described.forks.sum() > 0
    first = step.described.responses[0]
    assert inspector.shown["strategies"][0] == first.strategy
    begins = [*inspector.shown["begins"], len(forks)]
    expected = [forks[i] for r in rows_of(inspector.shown, inspector.response) for i in range(*begins[r : r + 2])]
    boxed = [p.get_edgecolor()[3] > 0 for p in inspector.picture().axes[0].patches]
    # The chosen token has a line whether it is a fork or not.
    assert np.count_nonzero(np.array(boxed) != np.array(expected, bool)) <= 1 and any(expected)
    # Tasks that cannot tell, alone or in one table with others, and columns that are no task's.
    table = run.tokens
    for told in (
        table.drop(columns=["strategy", "first_wrong", "fork"]),
        table.assign(strategy=np.nan, first_wrong=np.nan, fork=np.nan),
        table.assign(strategy="", first_wrong="none", fork="yes"),
        table.drop(columns="first_wrong").assign(fork=False),
    ):
        data = TokenInspector(told).shown
        assert not np.frombuffer(data["forks"], np.float32).any() and not any(data["wrong"])
        assert set(data["strategies"]) == {""}


def test_push_is_a_colour_where_it_was_recorded(run):
    assert "push" not in TokenInspector(run).shown["quantities"]  # this run is older
    with pytest.raises(ErltoolError, match="quantity push: the run is older"):
        TokenInspector(run).quantity = "push"
    step = next(erltool.train(CHAIN_STEP))
    inspector = TokenInspector(step, quantity="push")
    mask, tokens = step.tokens.response_mask, step.tokens
    expected = (tokens.log_ratio.exp() * tokens.advantages * tokens.entropy_slope)[mask]
    sent = np.frombuffer(inspector.shown["push"], np.float32)
    assert sent == pytest.approx(expected.numpy(), abs=1e-7) and sent.any()
    assert sent.mean() == pytest.approx(step.metrics["mean_push"], abs=1e-7)
    assert "push" in inspector.picture().axes[1].texts[1].get_text()


def test_it_opens_at_the_group_with_the_most_to_see(run):
    """Its rewards differ, no other such group has covariances as far apart, and the chosen token has the highest."""
    inspector, table = TokenInspector(run), run.tokens
    groups = table.groupby(["step", "prompt_index"])
    spread = groups["covariance"].std(ddof=0)[groups["reward"].nunique() > 1]
    group = inspector.shown["groups"][inspector.response]
    assert (inspector.step, group) == spread.idxmax() and len(spread) > 3
    shown = inspector.result.tokens
    of_group = shown[shown["prompt_index"] == group]
    assert of_group["reward"].nunique() > 1 and shown["covariance"][inspector.chosen] == of_group["covariance"].max()
    # Only one step has a covariance: it opens there. None has: it opens in another colour.
    step = int(table["step"].unique()[1])
    assert TokenInspector(table.assign(covariance=table["covariance"].where(table["step"] == step, 0.0))).step == step
    equal = TokenInspector(table.assign(advantage=0.0, covariance=0.0))
    assert equal.quantity == "entropy" and len({tuple(c) for c in cells(equal.picture())[0]}) > 3
    # What is asked for stays: a step, a response, a colour.
    asked = TokenInspector(table, step=4, response=3, quantity="ratio")
    assert (asked.step, asked.response, asked.quantity) == (4, 3, "ratio") and TokenInspector(table, step=4).step == 4


def test_a_runs_probes_play_from_the_first_step_to_the_last(tiny_config, tmp_path):
    steps = list(erltool.train(tiny_config(eval_every=0, record_probes=2, record_every=2), tmp_path))
    run = erltool.read_run(tmp_path)
    inspector = TokenInspector(run, view="probes", quantity="entropy")
    assert list(inspector.data["probes"]) == ["2", "6"] and inspector.step == 6
    prompts = {step: tuple(data["prompts"]) for step, data in inspector.data["probes"].items()}
    assert prompts["2"] == prompts["6"] and len(set(prompts["2"])) == 2
    inspector.response = 7
    inspector.step = 2
    assert inspector.response == 7 and "covariance" not in inspector.shown["quantities"]
    picture = inspector.picture()
    assert len(picture.axes[0].patches) and [t.get_text() for t in picture.axes[2].get_xticklabels()]
    # A step's own tokens have their alternatives before and after it; a run without probes has no such view.
    live = TokenInspector(next(s for s in steps if s.likeliest is not None))
    data = live.shown
    words = np.frombuffer(data["likeliest"], np.int32).reshape(len(data["texts"]), -1)
    before, after = (
        np.frombuffer(data[f"likeliest_{w}"], np.float32).reshape(words.shape) for w in ("before", "after")
    )
    text, at = data["texts"][live.chosen], live.chosen
    place = [data["words"][w] for w in words[at]].index(text)
    assert before[at, place] == pytest.approx(np.exp(live.result.tokens["log_prob"][at]), abs=1e-5)
    assert (before[words >= 0] >= 0).all() and after.shape == before.shape
    with pytest.raises(ErltoolError, match="view probes: none were recorded; train with record_probes"):
        TokenInspector(run.tokens).view = "probes"


def test_the_whole_state_is_in_the_traits_and_no_step_asks_the_kernel(run):
    inspector = TokenInspector(run)
    before = inspector.data
    assert [int(s) for s in before["update"]] == inspector.steps
    inspector.step, inspector.response, inspector.find = inspector.steps[2], 9, "eos"
    assert inspector.data is before


def test_bad_input_is_said_in_the_widget(run):
    table = run.tokens
    cases = {
        "no tokens": table.iloc[:0],
        "lacks covariance": table.drop(columns="covariance"),
        "log_prob is not finite on 1 of": table.assign(log_prob=table["log_prob"].where(table.index != 5)),
        "not dict": {},
    }
    for words, source in cases.items():
        inspector = TokenInspector(source)
        assert words in inspector.problem and inspector._repr_mimebundle_()[0]["text/plain"] == inspector.problem
        inspector.picture()
    one = table[(table["prompt_index"] == 0) & (table["response_index"] == 0)]
    assert TokenInspector(one).result.covariance == pytest.approx(0)  # one response has one advantage
    assert TokenInspector(one.assign(covariance=0.0)).shown["note"].startswith("Every covariance is 0: one response")
    equal = TokenInspector(table.assign(advantage=0.0, covariance=0.0))
    assert equal.result.covariance == 0 and not equal.result.tokens["clip_cov"].any()
    assert "all rewards are equal" in equal.shown["note"] and not equal.problem
    assert TokenInspector(table).shown["note"] == ""
    cut = TokenInspector(table.assign(text=table["text"].where(table.index % 2 == 0, "\ufffd")))
    assert "parts of a character" in cut.shown["note"]


def test_a_step_or_response_that_is_not_there_is_named(run):
    assert "no tokens of step 5;" in TokenInspector(run, step=5).problem
    inspector = TokenInspector(run)
    for trait, value in (("step", 5), ("response", 10_000), ("response", -1)):
        before = inspector.sentence
        with pytest.raises(ErltoolError, match=f"{trait} {value}"):
            setattr(inspector, trait, value)
        assert inspector.sentence == before


def test_hostile_and_broken_tokens_are_shown_as_themselves(run):
    hostile = [*HOSTILE, "\ufffd", "\u202e", "\x00", "\n", "a" * 10_000, "\x1b]8;;"]
    table = run.tokens.head(len(hostile)).assign(text=hostile, prompt="<script>alert(1)</script> $$")
    inspector = TokenInspector(table)
    assert inspector.shown["texts"][:4] == HOSTILE
    assert inspector.shown["texts"][4:8] == ["U+FFFD", "U+202E", "U+0000", "\\n"]
    assert visible("a\ud800b") == "aU+D800b"  # which no table of tokens can hold
    json.dumps(inspector.shown["texts"]).encode()
    inspector.picture().savefig(io.BytesIO(), format="png")


# --- lessons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(shipped("notebooks").glob("0*.ipynb")), ids=lambda p: p.stem)
def test_every_widget_of_a_lesson_has_a_static_twin_in_the_next_cell(path):
    code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    names = re.findall(rf"^(\w+) = (?:{'|'.join(erltool.widgets.__all__)})\(", "\n".join(map(text_of, code)), re.M)
    shows = [i for i, c in enumerate(code) if text_of(c).rstrip().splitlines()[-1] in names]
    assert len(shows) == {"02_why_entropy_falls": 2, "03_token_covariance": 3}.get(path.stem, len(shows))
    for i in shows:
        bundles = [[o["data"] for o in c["outputs"] if "image/png" in o.get("data", {})] for c in code[i : i + 2]]
        assert all(bundles), f"cell {i}: no picture of the widget, or none in the next cell"
        assert ".picture()" in text_of(code[i + 1]) and "widget-view" not in json.dumps(bundles)


def text_of(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", sorted(shipped("notebooks").glob("0*.ipynb")), ids=lambda p: p.stem)
def test_every_exercise_is_followed_by_its_solution(path):
    cells = json.loads(path.read_text())["cells"]
    tagged = [(i, c["cell_type"], t) for i, c in enumerate(cells) for t in c["metadata"].get("tags", ())]
    exercises = [(i, kind) for i, kind, tag in tagged if tag == "exercise"]
    assert len(exercises) >= 2 or path.stem.startswith("00")
    # An exercise that is a question has its answer, collapsed, in its own cell.
    written = [i for i, _ in exercises if "<summary>Answer" not in "".join(cells[i]["source"])]
    solutions = [(i, kind) for i, kind, tag in tagged if tag == "solution"]
    assert (
        set(solutions) <= {(i + 1, "code") for i, _ in exercises} and {i + 1 for i in written} <= dict(solutions).keys()
    )
    assert all(kind == "markdown" for _, kind in exercises)


def test_a_choice_made_in_the_browser_is_taken_and_not_sent_back(run, monkeypatch):
    lab, inspector = EntropyLab(), TokenInspector(run)
    for widget, chosen in (
        (lab, {"eta": 0.9, "method": "pg", "advantages": [1.0, 0.0, 0.0, 0.0]}),
        (inspector, {"coef": 0.3, "low": 0.2, "kl_fraction": 0.5, "quantity": "entropy"}),
    ):
        sent = []
        monkeypatch.setattr(
            type(widget), "_send", lambda self, message, buffers=None, to=sent: to.append(message["state"])
        )
        for name, value in chosen.items():
            data = {"method": "update", "state": {name: value}, "buffer_paths": []}
            widget._handle_msg({"content": {"data": data}, "buffers": []})
            assert getattr(widget, name) == value
        assert not [state for state in sent if set(state) & set(chosen)]


# --- probes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed():
    return erltool.read_run(shipped("data/runs/probes"))


def test_the_recorded_run_with_probes_is_the_demos_run_and_small(probed, run):
    """The same updates: a record of probes changes nothing, so what one sees of a fork is what the demo's run did."""
    measured = [m for m in run.metrics if m not in ("eval_accuracy", "eval_accuracy_tempered", "tokens_per_second")]
    same = [m for m in measured if m in probed.metrics]
    assert len(same) > 30 and probed.metrics[same].equals(run.metrics[same])
    assert sum(f.stat().st_size for f in probed.path.iterdir()) < 1e6
    assert probed.probes["step"].nunique() == 60 and probed.probes["prompt"].nunique() == 2


def test_a_probe_opens_and_closes_a_fork(probed):
    inspector = TokenInspector(probed, view="probes", step=76, response=8, position=0)
    place = same_place(probed.probes, 76, inspector.chosen)
    assert list(place.index) == sorted(probed.probes["step"].unique())
    assert place.loc[:76].min() < 0.6 * place.iloc[0] and place.max() > 0.65 and place.iloc[-1] < 0.2 * place.iloc[0]
    expected = ", ".join(f"{place[s]:.3f} at step {s}" for s in (4, 76, 240))
    assert expected in inspector.sentence and "6 of 8 responses are right" in inspector.sentence
    over = next(ax for ax in inspector.picture().axes if "by step" in ax.get_title(loc="left"))
    assert over.lines[0].get_ydata() == pytest.approx(place) and over.lines[1].get_xdata() == [76]


def test_a_place_is_that_after_the_same_tokens_to_the_same_prompt(probed):
    """A digit behind ">2+3=" is sampled only while responses work step by step."""
    now = probed.probes[probed.probes["step"] == 240].reset_index(drop=True)
    at = int(np.flatnonzero((now["prompt_index"] == 1) & (now["position"] == 5))[0])
    place = same_place(probed.probes, 240, at)
    text = probed.probes.groupby(["step", "prompt_index", "response_index"])["text"].agg("".join)
    began = text[text.str.startswith(">2+3=")].reset_index()
    assert set(place.index) == set(began[began["prompt_index"] == 1]["step"]) and 0 < len(place) < 60


def test_colours_span_the_group_on_show_and_show_small_values():
    values = np.array([0.1, -0.2, 8.0, 100.0])
    _, low, high, at = _colours(values, values[:3], "covariance")
    assert (low, high) == (-8, 8) and at(np.array([0.0, 8.0, -8.0, 1.0])) == pytest.approx([0.5, 1, 0, 0.75])
    _, low, high, at = _colours(np.arange(101.0), values, "entropy")
    assert (low, high) == (2, 98) and at(50.0) == 0.5


def test_a_thousand_moves_leave_no_object_behind(probed):
    h = np.linspace(1.0, 0.1, 40)
    law = erltool.widgets.CurveFitter((h, 0.9 - 0.3 * np.exp(h) + 0.01 * np.sin(7 * np.arange(40))))
    explorer = erltool.widgets.ControlExplorer(shipped("data/runs/bonus"))
    inspector = TokenInspector(probed)
    cases = (
        (law, "a", [0.2, 0.3, None]), (law, "window", [1, 2, 3]), (explorer, "cells", [[1], [2, 3], [0]]),
        (inspector, "kl_fraction", [0.1, 0.2]), (inspector, "step", inspector.steps[:3]),
    )  # fmt: skip
    for widget, trait, values in cases:

        def moved(count, widget=widget, trait=trait, values=values):
            for i in range(count):
                data = {"method": "update", "state": {trait: values[i % len(values)]}, "buffer_paths": []}
                widget._handle_msg({"content": {"data": data}, "buffers": []})
            gc.collect()
            return len(gc.get_objects())

        before = moved(50)
        assert moved(1000) <= before + 50, (type(widget).__name__, trait)
