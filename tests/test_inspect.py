"""Anyone's rollouts: the files of TRL, verl and prime-rl, plain ones, and what `erltool inspect` makes of them."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import erltool
from erltool import ClipCov, ErltoolError, KLCov, load_policy, read_rollouts
from erltool.cli import command as cli
from erltool.policies.inspection import inspect_rollouts, summary
from erltool.policies.sampling import sample_groups
from erltool.widgets import TokenInspector

FILES = Path(__file__).parent / "rollouts"


@pytest.fixture(scope="module")
def policy():
    return load_policy("sharpening", lora_rank=0)


def plain(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- files ------------------------------------------------------------------------------------------


def test_trl():
    file = read_rollouts(FILES / "trl")  # a folder: its last step
    assert file.kind == "TRL completions" and set(file.table["step"]) == {2} and len(file.table) == 16
    file = read_rollouts(FILES / "trl", step=1)
    raw = pd.read_parquet(FILES / "trl/completions_00001.parquet")
    assert file.table["response"].tolist() == raw["completion"].tolist()
    assert file.table["reward"].tolist() == pytest.approx((raw["right"] + raw["short"]).tolist())
    assert file.table["advantage"].tolist() == raw["advantage"].tolist()
    assert file.table["group"].tolist() == [g for g in range(4) for _ in range(4)]
    assert "sum of right, short" in file.notes[0]
    alone = read_rollouts(FILES / "trl", {"reward": "right"}, step=1)
    assert alone.table["reward"].tolist() == raw["right"].tolist() and not alone.notes


def test_verl():
    file = read_rollouts(FILES / "verl")
    assert file.kind == "verl rollouts" and file.took["reward"] == "score" and set(file.table["step"]) == {1}
    rows = [json.loads(line) for line in (FILES / "verl/1.jsonl").read_text().splitlines()]
    assert file.table["response"].tolist() == [row["output"] for row in rows]
    assert file.table.groupby("group").size().tolist() == [4] * 4 and "advantage" not in file.table


def test_prime_rl():
    file = read_rollouts(FILES / "prime-rl")
    row = json.loads((FILES / "prime-rl/token_exports/step_3/rank_0.jsonl").read_text().splitlines()[0])
    n = row["loss_mask"].count(True)
    first = file.table.iloc[0]
    assert first["prompt_ids"] + first["token_ids"] == row["token_ids"] and len(first["token_ids"]) == n
    assert first["log_probs"] == row["trainer_logprobs"][-n:] and first["entropy"] == row["entropy"][-n:]
    assert first["old_log_probs"] == row["inference_logprobs"][-n:] and first["advantage"] == row["advantages"][-n:]
    assert file.table["reward"].isna().all() and "mask" not in file.table


def test_tokens_of_tools_between_sampled_ones_are_context(tmp_path):
    row = json.loads((FILES / "prime-rl/token_exports/step_3/rank_0.jsonl").read_text().splitlines()[0])
    row["loss_mask"][-3] = False  # in the midst of the response
    file = read_rollouts(plain(tmp_path / "rank_0.jsonl", [row]))
    n = row["loss_mask"].count(True)
    assert file.table["mask"][0].count(False) == 1
    tokens = inspect_rollouts(file).tokens
    assert len(tokens) == n and tokens["position"].tolist() == [i for i in range(n + 1) if i != n - 2]


def test_plain_files_under_other_names_and_as_json_and_parquet(tmp_path):
    rows = [{"question": q, "generation": r, "score": s} for q, r, s in (("a", "x", 1), ("b", "y", 0), ("a", "z", 0))]
    lines = read_rollouts(plain(tmp_path / "a.jsonl", rows)).table
    assert lines["response"].tolist() == ["x", "z", "y"] and lines["group"].tolist() == [0, 0, 1]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    assert read_rollouts(tmp_path / "a.json").table.equals(lines)
    assert read_rollouts(tmp_path / "a.parquet").table.equals(lines)
    named = read_rollouts(tmp_path / "a.json", {"prompt": "generation", "response": "question"}).table
    assert named["prompt"].tolist() == ["x", "y", "z"]


def test_groups_by_a_column_and_by_number(tmp_path):
    rows = [{"prompt": p, "response": str(i), "reward": 1, "uid": f"u{i % 2}"} for i, p in enumerate("aaaabbbb")]
    path = plain(tmp_path / "a.jsonl", rows)
    assert read_rollouts(path).table["group"].tolist() == [0] * 4 + [1] * 4
    assert read_rollouts(path, group_size=2).table["group"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    by = read_rollouts(path, {"group": "uid"}).table
    assert (
        by["response"].tolist() == ["0", "2", "4", "6", "1", "3", "5", "7"]
        and by["group"].tolist() == [0] * 4 + [1] * 4
    )


def test_a_line_that_is_being_written_is_left_out_and_said(tmp_path):
    path = plain(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b", "reward": 1}] * 2)
    path.write_text(path.read_text() + '{"prompt": "a", "resp')
    file = read_rollouts(path)
    assert len(file.table) == 2 and "1 lines of a.jsonl" in file.notes[0]


def test_a_long_file_is_cut_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("erltool.logs.rollouts.MOST", 3)
    file = read_rollouts(plain(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b", "reward": 1}] * 5))
    assert len(file.table) == 3 and file.notes == ("only the first 3 responses are read",)
    rows = [{"prompt": "a", "response": "b", "reward": 1, "step": i // 2} for i in range(12)]
    late = read_rollouts(plain(tmp_path / "a.jsonl", rows), step=5)  # beyond the first three
    assert late.table["step"].tolist() == [5, 5] and not late.notes


def test_chats_are_their_contents(tmp_path):
    rows = [{"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
             "completion": [{"role": "assistant", "content": "A"}], "reward": 1}] * 2  # fmt: skip
    table = read_rollouts(plain(tmp_path / "a.jsonl", rows)).table
    assert table["prompt"][0] == "S\nU" and table["response"][0] == "A" and table["messages"][0] == rows[0]["prompt"]


def test_a_message_that_stands_alone_is_its_content(tmp_path):
    rows = [{"prompt": "a", "response": {"role": "assistant", "content": "A"}, "reward": 1}] * 2
    assert read_rollouts(plain(tmp_path / "a.jsonl", rows)).table["response"].tolist() == ["A", "A"]


def test_marked_encodings_are_read_and_json_over_several_lines_is_said(tmp_path):
    rows = [GOOD, GOOD | {"reward": 0}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    wanted = read_rollouts(plain(tmp_path / "a.jsonl", rows)).table
    for name, text in (("a.jsonl", lines), ("a.json", json.dumps(rows))):
        for encoding in ("utf-8-sig", "utf-16"):
            (tmp_path / name).write_text(text, encoding=encoding)
            assert read_rollouts(tmp_path / name).table.equals(wanted)
    (tmp_path / "a.json").write_text(json.dumps({"samples": rows}, indent=1))
    with pytest.raises(ErltoolError, match="a.json: no line is a JSON object; write a response a line"):
        read_rollouts(tmp_path / "a.json")


def test_numbers_of_a_response_are_none_of_its_tokens(tmp_path):
    row = GOOD | {"token_ids": [1, 2], "log_probs": [-0.1, -0.2], "entropy": 0.3, "old_log_probs": {"sum": -3}}
    file = read_rollouts(plain(tmp_path / "a.jsonl", [row, row]))
    assert {"entropy", "old_log_probs"}.isdisjoint(file.table)
    assert [n.split()[0] for n in file.notes] == ["old_log_probs", "entropy"] and "is left out" in file.notes[0]


def test_groups_of_unequal_size_are_said(tmp_path):
    """Two prompts of a step with the same text become one group, which their trainer did not compare."""
    rows = [GOOD | {"prompt": p, "uid": i // 2} for i, p in enumerate("aabbaa")]
    path = plain(tmp_path / "a.jsonl", rows)
    assert "prompts have 2 to 4 responses: a prompt that a step holds twice" in read_rollouts(path).notes[0]
    assert not read_rollouts(path, {"group": "uid"}).notes and not read_rollouts(path, group_size=2).notes


GOOD = {"prompt": "1+1:", "response": "=2", "reward": 1.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no responses"),
        ([{"prompt": "a", "response": "b"}], "no column of rewards; name it with --reward COLUMN"),
        ([{"prompt": "a", "reward": 1}], "no column of responses"),
        ([{"response": "a", "reward": 1}], "no column of prompts"),
        ([GOOD, GOOD | {"reward": math.nan}], "response 1: its reward, reward, is no finite number"),
        ([GOOD, GOOD | {"reward": None}], "response 1: its reward"),
        ([GOOD | {"reward": "good"}], "response 0: its reward"),
        ([GOOD | {"response": ""}], "every response is empty"),
        ([GOOD | {"token_ids": [1, 2], "log_probs": [-1.0]}], "has 2 token_ids, 1 log_probs"),
        ([GOOD | {"token_ids": [1, 2], "log_probs": [-1.0, math.nan]}], "log_probs holds what is no finite number"),
        ([GOOD | {"token_ids": [1, 2], "log_probs": [-1.0, None]}], "log_probs holds what is no finite number"),
        ([GOOD | {"token_ids": [1, -2]}], "must hold ids"),
        ([GOOD | {"token_ids": [1.5]}], "must hold ids"),
        ([GOOD, GOOD | {"response": None}], "response 1: has no response, as others have"),
        ([GOOD, {"prompt": "1+1:", "completion": "=2", "reward": 1}], "response 1: has no response"),
        ([GOOD | {"group": 1}, GOOD | {"group": None}], "response 1: has no group"),
        ([GOOD, GOOD | {"step": 3}], "response 0: has no step"),
        ([GOOD | {"step": "final"}], "its step, final, is no whole number"),
        ([GOOD | {"step": math.inf}], "its step, inf, is no whole number"),
        ([GOOD | {"step": 1.5}], "its step, 1.5, is no whole number"),
        ([GOOD | {"response": [5, 6]}], "response is neither a text nor messages; name a column of text"),
        ([GOOD | {"response": ["=2", "=3"]}], "response is neither a text nor messages"),
        ([GOOD | {"prompt": [1, 2]}], "prompt is neither a text nor messages"),
        ([GOOD | {"response": {"tokens": 2}}], "response is neither a text nor messages"),
        ([GOOD | {"advantage": math.inf}], "its advantage, advantage, is no finite number"),
        ([GOOD | {"advantage": "high"}], "its advantage, advantage, is no finite number"),
        ([GOOD | {"token_ids": [1, 2], "log_probs": [0.1, 2.2]}], "log_probs holds 2.2, and no log-probability is"),
        ([GOOD | {"token_ids": [1, 2], "entropy": [-0.1, -0.2]}], "entropy goes from -0.2 to -0.1, and none"),
        ([GOOD | {"token_ids": [1, 2], "entropy": [3.0, 40.0]}], "below 0 or above 14 nats"),
        ([GOOD | {"token_ids": [1, 2], "mask": ["true", "false"]}], "mask holds what is neither true nor false"),
        ([GOOD | {"token_ids": [1, 2], "mask": [0, 0]}], "no token is marked as sampled"),
    ],
)
def test_wrong_files_are_one_line(rows, message, tmp_path, capsys):
    path = plain(tmp_path / "a.jsonl", rows)
    assert cli.main(["inspect", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.jsonl"], "no such file or folder"),
        (["."], "no completions_*.parquet (TRL)"),
        (["a.txt"], "neither Parquet nor JSON"),
        (["bad.parquet"], "not readable as Parquet"),
        (["bad.json"], "no JSON"),
        (["a.jsonl", "--reward", "nothing"], "no column nothing; there are prompt"),
        (["a.jsonl", "--group-size", "3"], "4 responses do not make groups of 3"),
        (["a.jsonl", "--group-size", "4"], "responses 0 to 3 are not to one prompt"),
        (["a.jsonl", "--step", "7"], "no responses of step 7"),
        ([str(FILES / "trl"), "--step", "7"], "no step 7; there are 1 to 2"),
        (["a.jsonl"], "the file has no token ids; give --policy"),
        (["ids.jsonl"], "the file has no log-probs of its tokens; give --policy"),
        (["one.jsonl", "--policy", "sharpening"], "every prompt has one response"),
        (["a.jsonl", "--policy", "nothing-here"], "no config.json there"),
        (["a.jsonl", "--control", "klcov"], "control 'klcov' is not known"),
        (["a.jsonl", "--policy", "sharpening", "--advantages", "gae"], "advantage estimator 'gae' is not known"),
        (["long.jsonl", "--policy", "sharpening"], "positions"),
        (["other.jsonl", "--policy", "sharpening"], "is beyond the policy's"),
    ],
)
def test_wrong_arguments_are_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erltool.policies.sources.hub_reachable", lambda: False)
    four = [GOOD | {"prompt": p} for p in ("1+1:", "1+1:", "1+2:", "1+2:")]
    plain(Path("a.jsonl"), four)
    plain(Path("ids.jsonl"), [row | {"token_ids": [1, 2]} for row in four])
    plain(Path("one.jsonl"), [GOOD])
    plain(Path("long.jsonl"), [GOOD | {"response": "1" * 5000}] * 2)
    plain(Path("other.jsonl"), [GOOD | {"token_ids": [100_000]}] * 2)
    Path("a.txt").write_text("hello")
    Path("bad.parquet").write_bytes(b"PAR1 and no more")
    Path("bad.json").write_text("[{")
    assert cli.main(["inspect", *words]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("erltool: ") and message in err


# --- tokens -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(policy):
    """16 responses of the shipped policy, as our own trainer sees them."""
    task = erltool.load_task("chain:sharpening")
    rollouts = sample_groups(policy, [p.prompt for p in task.train[:4]], 4, max_response_tokens=28,
                             generator=torch.Generator().manual_seed(0))  # fmt: skip
    rewards = task.rewards([p for p in task.train[:4] for _ in range(4)], rollouts.responses)
    return rollouts, torch.tensor(rewards)


def test_scoring_gives_what_the_trainer_knew(policy, sampled, tmp_path):
    rollouts, rewards = sampled
    rows = [{"prompt": r.prompt, "response": r.response, "reward": float(reward), "token_ids": r.token_ids}
            for r, reward in zip((rollouts[b] for b in range(16)), rewards, strict=True)]  # fmt: skip
    found = inspect_rollouts(read_rollouts(plain(tmp_path / "a.jsonl", rows)), policy, control=ClipCov(0.1, 0.1, 5))
    mask = rollouts.response_mask
    advantages = erltool.group_advantages(rewards, 4)
    covariance = erltool.token_covariance(advantages, rollouts.log_probs, mask)[mask]
    np.testing.assert_allclose(found.tokens["log_prob"], rollouts.log_probs[mask], atol=2e-5)
    np.testing.assert_allclose(found.tokens["covariance"], covariance, atol=2e-5)
    assert found.tokens["token_id"].tolist() == rollouts.token_ids[mask].tolist()
    assert 0 < found.tokens["selected"].sum() <= 0.1 * mask.sum()
    assert found.tokens["covariance"][found.tokens["selected"]].between(0.1, 5).all()
    assert not any("approximate" in note for note in found.notes)
    top = found.top(3)["covariance"].tolist()
    assert top == sorted(found.tokens["covariance"], reverse=True)[:3]


def test_the_files_own_numbers_stay_and_are_compared(policy, sampled, tmp_path):
    rollouts, rewards = sampled
    made = [rollouts[b] for b in range(16)]
    rows = [{"prompt": r.prompt, "response": r.response, "reward": float(reward), "token_ids": r.token_ids,
             "log_probs": r.log_probs, "advantage": 3.0 * b}
            for b, (r, reward) in enumerate(zip(made, rewards, strict=True))]  # fmt: skip
    found = inspect_rollouts(read_rollouts(plain(tmp_path / "a.jsonl", rows)), policy)
    assert any("it is the policy that sampled" in note for note in found.notes)
    first = found.tokens.groupby(["prompt_index", "response_index"])["advantage"].first()
    assert first.tolist() == [3.0 * b for b in range(16)]
    alone = inspect_rollouts(read_rollouts(tmp_path / "a.jsonl")).tokens  # without a model
    np.testing.assert_array_equal(alone["log_prob"], found.tokens["log_prob"])
    assert "entropy" not in alone and "push" not in alone and alone["text"][0].startswith("#")
    shifted = [row | {"log_probs": [lp - 0.5 for lp in row["log_probs"]]} for row in rows]
    found = inspect_rollouts(read_rollouts(plain(tmp_path / "b.jsonl", shifted)), policy)
    assert any("differ from the file's by 0.500 nats" in note and "approximate" in note for note in found.notes)


def test_what_is_approximate_is_said(policy, sampled, tmp_path):
    rollouts, rewards = sampled
    made = [rollouts[b] for b in range(16)]
    rows = [{"prompt": r.prompt, "response": r.response, "reward": float(reward)}
            for r, reward in zip(made, rewards, strict=True)]  # fmt: skip

    def notes(changed):
        return " | ".join(inspect_rollouts(read_rollouts(plain(tmp_path / "a.jsonl", changed)), policy).notes)

    assert "whether an EOS ended it, is not known" in notes(rows)
    with_eos = [row | {"log_probs": r.log_probs} for row, r in zip(rows, made, strict=True)]
    assert "have one log_probs more than tokens" in notes(with_eos)
    assert "do not agree with their tokens in number" in notes([row | {"log_probs": [-1.0] * 99} for row in rows])
    other = [row | {"token_ids": r.token_ids, "response": "something else"} for row, r in zip(rows, made, strict=True)]
    assert "of 16 responses decode to another text" in notes(other)
    assert "do not decode to their text again" in notes(
        [row | {"response": row["response"] + "\u00e9"} for row in rows]
    )


def test_an_empty_response_ended_at_once(policy, tmp_path):
    rows = [GOOD, GOOD | {"response": "", "reward": 0.0}]
    tokens = inspect_rollouts(read_rollouts(plain(tmp_path / "a.jsonl", rows)), policy).tokens
    assert tokens["token_id"].tolist()[-1] == policy.ends[0] and len(tokens) == 3


def test_groups_of_unequal_size_and_of_one(policy, tmp_path):
    rows = [GOOD | {"prompt": p, "reward": r} for p, r in (("1+1:", 1.0), ("1+1:", 0.0), ("1+2:", 1.0), ("1+1:", 0.0))]
    found = inspect_rollouts(read_rollouts(plain(tmp_path / "a.jsonl", rows)), policy)
    assert any("1 prompts have one response" in note for note in found.notes)
    first = found.tokens.groupby(["prompt_index", "response_index"])["advantage"].first()
    three = erltool.group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)
    assert first.tolist() == pytest.approx([*three.tolist(), 0.0])


def test_reinforce_plus_plus_is_over_the_step_whatever_the_groups(policy, tmp_path):
    """The deviation of `reinforce++-baseline`, and the mean of `reinforce++`, are the step's, and not a group's."""

    def inspected(estimator, *groups):
        rows = [GOOD | {"prompt": f"1+{g}:", "reward": r} for g, rewards in enumerate(groups) for r in rewards]
        found = inspect_rollouts(read_rollouts(plain(tmp_path / "a.jsonl", rows)), policy, advantages=estimator)
        return found.tokens.groupby(["prompt_index", "response_index"])["advantage"].first(), found.notes

    of_groups, _ = inspected("reinforce++-baseline", [1.0, 0.0], [0.0, 0.0, 1.0])
    centred = torch.tensor([0.5, -0.5, -1 / 3, -1 / 3, 2 / 3])
    assert of_groups.tolist() == pytest.approx((centred / centred.std()).tolist(), rel=1e-4)
    even, _ = inspected("reinforce++-baseline", [1.0, 0.0], [0.0, 0.0])
    of_four = erltool.group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 2, "reinforce++-baseline")
    assert even.tolist() == pytest.approx(of_four.tolist())
    of_step, notes = inspected("reinforce++", [1.0], [0.0])
    assert of_step.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-4)
    assert not any("whose advantage is 0" in note for note in notes)


def test_each_step_is_an_update_of_its_own(policy, tmp_path):
    rows = [
        GOOD | {"step": s, "reward": float(i % 2), "response": r} for s in (4, 5) for i, r in enumerate(("=2", "=3"))
    ]
    both = inspect_rollouts(read_rollouts(plain(tmp_path / "a.jsonl", rows)), policy, control=KLCov(0.01)).tokens
    one = inspect_rollouts(read_rollouts(tmp_path / "a.jsonl", step=5), policy, control=KLCov(0.01)).tokens
    assert both.groupby("step")["selected"].sum().tolist() == [1, 1]
    pd.testing.assert_frame_equal(pd.DataFrame(both[both["step"] == 5].reset_index(drop=True)), pd.DataFrame(one))


@pytest.mark.parametrize("name", ["trl", "verl", "prime-rl"])
def test_the_inspector_opens_every_kind(name, policy):
    found = inspect_rollouts(read_rollouts(FILES / name), policy)
    widget = TokenInspector(found)
    assert not widget.problem and len(widget.shown["rewards"]) == 16
    assert "push" in widget.shown["quantities"] and all(map(math.isfinite, widget.shown["rewards"]))
    result = widget.result
    assert len(result.tokens) == len(found.tokens) and result.covariance == pytest.approx(
        found.tokens["covariance"].mean(), abs=1e-6)  # fmt: skip
    assert summary(found).startswith("step ")


# --- the command --------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    words = ["inspect", str(FILES / "trl"), "--policy=sharpening", "--control=clip-cov:chain", "--top=5", "--by=push"]
    assert cli.main([*words, f"--out={tmp_path / 'tokens'}"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "trl: TRL completions" and "16 responses to 4 prompts" in lines[1]
    assert any(line.startswith("clip-cov would act on 1 tokens") for line in lines)
    table = lines[lines.index("") + 1 :]
    assert table[0].split()[0] == "push" and len(table) >= 6 and max(map(len, lines)) <= 80
    written = pd.read_parquet(tmp_path / "tokens/tokens.parquet")
    pushes = [float(line.split()[0]) for line in table[1:6]]
    assert pushes == pytest.approx(sorted(written["push"], reverse=True)[:5], abs=1e-3)
    assert all("[" in line and "]" in line for line in table[1:6])


def test_hostile_text_is_inert_and_fits(tmp_path, capsys):
    bad = "\x1b[31m\u202e\r\n" * 40
    rows = [{"prompt": bad + "1+1:", "response": bad + "=2", "reward": i % 2, "token_ids": [1, 2, 3, 4],
             "log_probs": [-0.1, -0.2, -3.0, -0.1 * i]} for i in range(4)]  # fmt: skip
    path = plain(tmp_path / "a\x1b[31m.jsonl", rows)
    assert cli.main(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert not {"\x1b", "\u202e", "\r"} & set(out + err) and max(map(len, out.splitlines())) <= 80


def test_a_token_of_any_length_fits_its_line():
    from erltool.cli.inspect_ import _around

    for before in ("", "b" * 3, "b" * 300):
        for token in ("", "t", "t" * 300):
            for after in ("", "a" * 3, "a" * 300):
                for width in (12, 33, 60):
                    line = _around(before, token, after, width)
                    assert len(line) <= width and "[" in line and "]" in line
                    if len(before) + len(token) + len(after) + 2 <= width:
                        assert line == f"{before}[{token}]{after}"


def test_reading_rollouts_needs_no_torch():
    code = "import sys, erltool.logs.rollouts, erltool.logs.check; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_public_names_are_there():
    assert erltool.read_rollouts is read_rollouts and erltool.inspect_rollouts is inspect_rollouts
    with pytest.raises(ErltoolError, match="no role 'x'|no role x"):
        read_rollouts(FILES / "verl", {"x": "y"})


def test_on_a_terminal_the_top_responses_have_their_tokens_in_colour():
    from rich.console import Console

    from erltool.cli.inspect_ import RESPONSES, coloured

    found = inspect_rollouts(read_rollouts(FILES / "prime-rl"))
    texts = coloured(found, 10, "covariance")
    assert 0 < len(texts) <= RESPONSES
    top = found.top(1, "covariance").iloc[0]
    same = [found.tokens[k] == top[k] for k in ("step", "prompt_index", "response_index")]
    response = found.tokens[same[0] & same[1] & same[2]]
    assert texts[0].plain.endswith("".join(response["text"]))
    share = response["covariance"] / found.tokens["covariance"].abs().max()
    grounds = [str(span.style).rpartition(" on ")[2] for span in texts[0].spans]
    assert len(grounds) == len(response)
    warmth = [int(g[4:-1].split(",")[0]) - int(g[4:-1].split(",")[2]) for g in grounds]  # red minus blue
    assert np.argmax(warmth) == np.argmax(share) and max(warmth) > 50
    assert all(w * value >= 0 for w, value in zip(warmth, share, strict=True))
    hostile = found.tokens.assign(text="\x1b[2J[red]", prompt="\x1b]0;owned\x07")
    console = Console(force_terminal=True, color_system="truecolor", width=400, record=True)
    with console.capture() as shown:
        for text in coloured(replace(found, tokens=hostile), 3, "covariance"):
            console.print(text)
    assert "U+001B[2J[red]" in shown.get() and "\x1b[2J" not in shown.get() and "\x07" not in shown.get()
