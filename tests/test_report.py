"""The report's page: what stands in it, that nothing can leave or enter it, and that its numbers are the run's."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import traitlets

import erltool
from erltool.cli import command as cli
from erltool.logs.read import read_log
from erltool.report import page as pages
from erltool.report.charts import charts_of
from erltool.report.sources import named
from erltool.report.state import Asks, Bytes, rounded, state_of, view_of
from erltool.report.tokens import MOST, for_the_page, responses
from erltool.resources import shipped
from erltool.runs.folder import Run, read_run, read_runs
from erltool.widgets import ControlExplorer, CurveFitter, TokenInspector
from erltool.widgets.view import CHOSEN, View, modules_of

LOGS = Path(__file__).parent / "logs"
HOSTILE = "</script><img src=x onerror=window.hit=1>\u202e\u2028'\"&amp;"


class Page(HTMLParser):
    """A page's elements as a browser's parser finds them."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.inside: dict[str, list[str]] = {}
        self.now = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.setdefault(tag, []).append("")
        self.now = tag

    def handle_endtag(self, tag):
        self.now = ""

    def handle_data(self, data):
        if self.now:
            self.inside[self.now][-1] += data

    def policy(self) -> str:
        (meta,) = (a for t, a in self.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
        return meta["content"]

    def block(self, name: str) -> bytes:
        at = [a.get("id") for t, a in self.elements if t == "script"].index(name)
        return gzip.decompress(base64.b64decode(self.inside["script"][at]))

    @property
    def facts(self) -> dict:
        return json.loads(self.block("facts"))


@pytest.fixture(scope="module")
def run():
    return read_run(shipped("data/runs/demo-none"))


@pytest.fixture(scope="module")
def both(run):
    return {"no control": run, "Clip-Cov": read_run(shipped("data/runs/demo-clip-cov"))}


def with_tokens(run: Run, tokens: pd.DataFrame) -> Run:
    other = Run(run.path, run.config, run.made_by, run.metrics, 0)
    vars(other)["tokens"] = tokens
    return other


def many_tokens(steps: int, prompts: int, group: int, length: int) -> pd.DataFrame:
    """Recorded tokens of responses of this length."""
    rng, n = np.random.default_rng(0), steps * prompts * group * length
    at = np.arange(n)
    response = at // length
    words = np.array([f" word{i}" for i in range(2000)])
    log_prob, advantage = -rng.exponential(0.5, n), rng.normal(size=n // length)[response]
    return pd.DataFrame({
        "step": response // (prompts * group) * 4 + 4, "prompt_index": response // group % prompts,
        "response_index": response % group, "position": at % length,
        "prompt": [f"What is {p}?" for p in response // group % prompts], "reward": (response % 2).astype(float),
        "token_id": rng.integers(0, 2000, n), "text": words[rng.integers(0, 2000, n)], "log_prob": log_prob,
        "old_log_prob": log_prob + rng.normal(0, 0.01, n), "entropy": rng.exponential(0.3, n),
        "advantage": advantage, "covariance": (log_prob - log_prob.mean()) * advantage,
        "selected": rng.random(n) < 0.02, "push": rng.normal(0, 1e-3, n), "dose": rng.exponential(1e-3, n),
    })  # fmt: skip


def test_the_policy_allows_this_script_and_this_style_and_no_address(both):
    page = Page(pages.page_of(both))
    policy = page.policy()
    assert policy.startswith("default-src 'none';") and "http" not in policy and "*" not in policy
    assert not re.search(r"script-src[^;]*unsafe|style-src [^;]*unsafe", policy)
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        code = page.inside[tag][-1]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert not [a for t, a in page.elements if {"src", "srcset", "data", "action"} & set(a)]
    assert all(a["href"].startswith("#") for _, a in page.elements if "href" in a)


def test_the_pages_numbers_are_the_runs(run):
    facts = Page(pages.page_of({"a": run})).facts
    entropy, _, accuracy, covariance, *_ = facts["charts"]
    means = run.metrics.groupby("iteration")["policy_entropy"].mean()
    assert entropy["lines"][0]["y"] == pytest.approx(means.tolist(), rel=1e-4)
    assert accuracy["lines"][0]["y"] == pytest.approx(run.evaluated()["eval_accuracy"].tolist(), rel=1e-4)
    assert [line["name"] for line in accuracy["lines"]] == ["sampled", "greedy"]
    names = [line["name"] for line in covariance["lines"]]
    assert names == ["top 0.02 %", "top 0.2 %", "top 2 %", "top 20 %", "top 50 %", "all tokens"]
    assert [alarm[1] for alarm in facts["alarms"]] == [81]


def restored(packed: dict, numbers: bytes) -> dict:
    """As page.js restores a state."""
    values = json.loads(json.dumps(packed["values"]))
    for path, offset, length in packed["buffers"]:
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = numbers[offset : offset + length]
    return values


def test_a_widgets_state_comes_back_with_its_bytes_and_what_the_kernel_answers(run):
    widget, numbers = TokenInspector(run), Bytes()
    state = state_of(widget, numbers, Asks({"step": widget.steps}, along=("response",)))
    blob = b"".join(numbers.parts)
    assert all(offset % 8 == 0 for _, offset, _ in state["buffers"])
    assert restored(state, blob) == json_like(widget)  # which is at its step again
    for (step,), packed in state.get("answers", []):
        widget.step = step
        assert restored(state, blob) | {"step": step} | restored(packed, blob) == json_like(widget)


def test_the_law_has_the_kernels_answer_for_every_source_and_cut(both):
    widget, numbers = CurveFitter(both, beside=[1]), Bytes()
    asks = Asks(
        {"current": [0, 1], "cut": [0.3, 1.0]}, given=("window", "nothing"), along=("verdict",), settle=pages._compared
    )
    state = state_of(widget, numbers, asks)
    blob = b"".join(numbers.parts)
    assert state["asks"] == ["current", "cut"] and state["given"] == ["window"]
    assert [values for values, _ in state["answers"]] == [[0, 0.3], [0, 1.0], [1, 0.3], [1, 1.0]]
    assert widget.current == 0 and widget.cut == 1.0
    for (current, cut), packed in state["answers"]:
        widget.current, widget.cut = current, cut
        widget.compare()
        after = restored(packed, blob)
        assert after == {k: v for k, v in json_like(widget).items() if k in after} and after["verdict"]


def json_like(widget) -> dict:
    """The widget's own traits with lists for tuples."""

    def plain(value):
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return bytes(value) if isinstance(value, memoryview | bytes) else value

    names = [k for k in widget.keys if not k.startswith("_") and k not in ("layout", "tabbable", "tooltip")]
    return {k: plain(v) for k, v in widget.get_state(names).items()}


class Alone(View):
    """A widget that reads all of its data from the beginning, and whose kernel only keeps the choices in order."""

    _esm = "\nexport default { render };"
    step = traitlets.Int(0).tag(**CHOSEN)
    response = traitlets.Int(5).tag(**CHOSEN)

    @traitlets.observe("step")
    def _clamped(self, change):
        self.response = min(self.response, 5 - change.new)


def test_a_widget_that_needs_no_kernel_has_no_answers_that_undo_a_readers_choice():
    state = state_of(Alone(), Bytes(), Asks({"step": [0, 1, 2]}, along=("response",)))
    assert "answers" not in state and state["values"] == {"step": 0, "response": 5, "problem": ""}


@pytest.mark.parametrize("make", [TokenInspector, CurveFitter, ControlExplorer])
def test_a_widgets_javascript_is_taken_as_it_is(make, run):
    widget = make(run)
    name, modules, code = view_of(widget)
    whole = str(widget.get_state(["_esm"])["_esm"])
    shared = "".join(modules.values())
    assert name == make.__name__ and code.startswith("(() => {") and "export default" not in code
    assert whole.startswith(shared) and whole.removeprefix(shared).rpartition("\nexport default ")[0] in code


def test_what_the_widgets_share_is_in_the_page_once(both):
    script = Page(pages.page_of(both)).inside["script"][-1]
    modules = [m for make in (TokenInspector, CurveFitter, ControlExplorer) for m in modules_of(file_of(make))[0]]
    assert (
        modules.count("elements") == 3
        and modules.count("kit") == 2
        and {script.count(f"const {name} = (() => {{") for name in modules} == {1}
    )


def file_of(widget: type) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", widget.__name__).lower() + ".js"


def test_hostile_names_and_tokens_reach_the_page_as_text(run, tmp_path):
    tokens = run.tokens.assign(text=HOSTILE, prompt=HOSTILE)
    config = run.config | {"policy": HOSTILE, HOSTILE: HOSTILE}
    hostile = Run(tmp_path / "x", config, run.made_by | {"torch": HOSTILE}, run.metrics, 0)
    vars(hostile)["tokens"] = tokens
    text = pages.page_of({HOSTILE: hostile, "b": run})
    page = Page(text)
    assert "img" not in page.inside and text.count("</script>") == 3
    assert not set("\u202e\u2028") & set(text)
    assert "U+202E" in text  # and said
    widget = page.facts["widgets"]["tokens"][0]
    assert "U+202E" in json.dumps(widget) and "\u202e" not in json.dumps(widget, ensure_ascii=False)


def test_numbers_that_are_not_finite_make_no_page_that_cannot_be_read(run):
    metrics = run.metrics.copy()
    metrics.loc[5:9, "policy_entropy"] = np.nan
    metrics.loc[12, "reward"] = np.inf
    page = Page(pages.page_of({"a": Run(run.path, run.config, {}, metrics, 0)}))
    assert page.facts["charts"]  # JSON.parse knows no NaN, and neither does this parser's strict form
    json.loads(page.block("facts"), parse_constant=lambda name: pytest.fail(name))


def test_fifty_recorded_steps_are_five_megabytes_at_most(run):
    ours = with_tokens(run, many_tokens(50, 4, 8, 28))  # what the default of record_prompts keeps
    text = pages.page_of({"a": ours})
    assert len(text) < 5e6
    assert "recorded tokens are in this page" not in text
    longer = with_tokens(run, many_tokens(50, 4, 8, 300))
    cut = pages.page_of({"a": longer})
    assert len(cut) < 5e6 and "of 480,000 recorded tokens are in this page" in cut


def test_a_cut_keeps_every_step_while_it_can_and_whole_responses():
    tokens = many_tokens(50, 4, 8, 100)
    run = Run(Path("r"), {}, {}, pd.DataFrame(), 0)
    kept, (said,) = for_the_page({"a": with_tokens(run, tokens)})
    table = kept["a"].tokens
    assert len(table) <= MOST and table["step"].nunique() == 50 and "of 50 of 50 recorded steps" in said
    assert (table.groupby(["step", "prompt_index", "response_index"]).size() == 100).all()
    few, (said,) = for_the_page({"a": with_tokens(run, many_tokens(50, 1, 8, 500))})
    steps = few["a"].tokens["step"].unique()
    assert len(few["a"].tokens) <= 1.1 * MOST and steps[0] == 4 and steps[-1] == 200 and len(steps) < 50


def test_the_list_of_responses_has_whole_texts_and_their_place_in_the_step(run):
    listed = responses(run.tokens)
    assert len(listed) == run.tokens.groupby(["step", "prompt_index", "response_index"]).ngroups
    step, at, prompt, text, reward, tokens, covariance = listed[40]
    of_step = run.tokens[run.tokens["step"] == step]
    shown = TokenInspector(run, step=step).shown
    begins = [*shown["begins"], len(of_step)]
    one = of_step.iloc[begins[at] : begins[at + 1]]
    assert prompt == shown["prompts"][at] and text == "".join(one["text"]) and tokens == len(one)
    assert reward == one["reward"].iloc[0] and covariance == pytest.approx(one["covariance"].mean(), rel=1e-3)


def test_rounded_numbers_differ_by_less_than_a_reader_sees(rng):
    values = np.concatenate([rng.normal(0, 10.0 ** rng.integers(-6, 6, 1000)), [0.0, -1.0]])
    assert rounded(values) == pytest.approx(values, rel=2**-16)
    assert not (rounded(values).view(np.int64) & (2**36 - 1)).any()  # zeros, which compress


def test_a_log_shows_what_it_has_and_says_what_it_lacks():
    text = pages.page_of({"verl.jsonl": read_log(LOGS / "verl.jsonl")})
    page = Page(text)
    assert [chart["title"] for chart in page.facts["charts"]][:3] == ["Policy entropy", "Reward", "Held-out accuracy"]
    assert set(page.facts["widgets"]) == {"law"}
    assert "No tokens, no configuration and no versions" in text and "No covariance" in text
    assert "actor/entropy" in text  # the column that was taken


def test_percentage_points_are_drawn_as_fractions(tmp_path):
    rows = pd.DataFrame(
        {
            "step": range(1, 31),
            "entropy": np.linspace(1, 0.1, 30),
            "val_accuracy": np.arange(30) + 40 + np.arange(30) % 3,
        }
    )
    rows.to_csv(tmp_path / "log.csv", index=False)
    facts = Page(pages.page_of({"log": read_log(tmp_path / "log.csv")})).facts
    accuracy = next(c for c in facts["charts"] if c["title"] == "Held-out accuracy")
    assert accuracy["lines"][0]["y"][0] == pytest.approx(0.4)


def test_the_sample_in_the_repository_has_the_numbers_of_its_runs(both):
    """The command in data/README.md makes it again when the page or a widget has changed."""
    file = shipped("data/report.html")
    page = Page(file.read_text(encoding="utf-8"))
    fresh = charts_of(named(both))
    assert file.stat().st_size < 1e6 and page.policy().startswith("default-src 'none'")
    assert [c["title"] for c in page.facts["charts"]] == [c["title"] for c in fresh]
    for shipped_chart, chart in zip(page.facts["charts"], fresh, strict=True):
        assert [line["y"] for line in shipped_chart["lines"]] == [pytest.approx(line["y"]) for line in chart["lines"]]
    assert set(page.facts["widgets"]) == {"tokens", "law", "controls"}


def test_runs_over_seeds_are_compared_and_few_are_spelled_out():
    runs = dict(list(read_runs(shipped("data/runs/bonus")).items())[:14])
    page = Page(pages.page_of(runs))
    assert set(page.facts["widgets"]) >= {"controls", "law"}
    assert len(page.facts["runs"]) == len(runs) > 6
    assert page.inside["summary"][0] == f"All {len(runs)} runs"


def test_runs_that_were_never_evaluated_have_the_law_of_their_reward():
    runs = dict(list(read_runs(shipped("data/runs/through-trl")).items())[:2])
    page = Page(pages.page_of(runs))
    (law,) = page.facts["widgets"]["law"]
    assert law["values"]["performance"] == "reward" and not law["values"]["problem"]


def test_equal_sources_make_equal_pages(run):
    assert pages.page_of({"a": run}) == pages.page_of({"a": run})


def test_the_command_takes_runs_folders_of_runs_and_logs(tmp_path, capsys, monkeypatch):
    out = tmp_path / "report.html"
    words = [str(shipped("data/runs/through-trl")), str(shipped("data/runs/demo-none")), str(LOGS / "trl_console.log")]
    assert cli.main(["report", *words, "--out", str(out)]) == 0
    assert "MB; open it in a browser" in capsys.readouterr().out
    names = Page(out.read_text()).facts["runs"]
    assert "demo-none" in names and "trl_console.log" in names and len(names) == 20
    monkeypatch.chdir(tmp_path)
    shutil.copytree(words[1], tmp_path / "copy" / "demo-none")
    assert cli.main(["report", words[1], str(tmp_path / ".." / tmp_path.name / "copy" / "demo-none")]) == 0
    assert len(Page((tmp_path / "report.html").read_text()).facts["runs"]) == 2  # of one name
    for bad, message in ((["nowhere"], "no such file"), ([words[1], "--out", "a.txt"], "must end in .html")):
        assert cli.main(["report", *bad]) == 2
        assert message in capsys.readouterr().err


def test_training_leaves_a_report_and_does_not_fail_without_one(tiny_policy, tmp_path, capsys, monkeypatch):
    words = [
        "train", f"--policy={tiny_policy}", "--task=countdown", "--steps=4", "--prompts-per-iteration=4",
        "--lora-rank=4", "--group-size=4", "--updates-per-iteration=2", "--max-response-tokens=8", "--eval-every=1",
        "--eval-prompts=4", "--eval-samples=1", "--record-every=1",
    ]  # fmt: skip
    assert cli.main([*words, f"--out={tmp_path / 'a'}"]) == 0
    assert "written: report.html in the run's folder" in capsys.readouterr().out
    facts = Page((tmp_path / "a" / "report.html").read_text()).facts
    assert facts["runs"] == ["a"] and "tokens" in facts["widgets"]
    assert erltool.read_run(tmp_path / "a").metrics["step"].max() == 4

    def broken(*_, **__):
        raise KeyError("gone\x1b")

    monkeypatch.setattr(pages, "page_of", broken)
    assert cli.main([*words, f"--out={tmp_path / 'b'}"]) == 0
    err = capsys.readouterr().err
    assert "no report was written: KeyError" in err and "Traceback" not in err and "\x1b" not in err
    assert not (tmp_path / "b" / "report.html").exists()


@pytest.mark.parametrize("where", ["checkpoint-4", "."])
def test_a_trl_folder_with_a_models_config_is_a_log_and_no_run(where, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "checkpoint-4").mkdir(parents=True)
    shutil.copy(LOGS / "trainer_state.json", out / "checkpoint-4")
    (out / where / "config.json").write_text('{"model_type": "llama", "vocab_size": 32}')
    page = tmp_path / "page.html"
    for words in (["report", str(out), "--out", str(page)], ["watch", str(out), "--once"]):
        assert cli.main(words) == 0, capsys.readouterr().err
    assert "TRL trainer_state" in capsys.readouterr().out and page.stat().st_size > 10_000
    assert cli.main(["fit", str(out)]) == 2  # two evaluations are too few, and they are eval_reward's
    assert "2 points; at least 3" in capsys.readouterr().err
