"""Where the package's data is, and the error where it is missing."""

import os
import subprocess

import pytest

from erltool import ErltoolError, TrainConfig, load_task, read_runs
from erltool.policies.sources import find_model
from erltool.resources import POLICIES, _git, shipped


def test_what_is_shipped_is_found_and_what_is_missing_has_a_remedy():
    assert shipped("data/policies/countdown/config.json").is_file()
    with pytest.raises(ErltoolError, match=r"^data/runs/nothing is missing beside .*; install erltool again from one$"):
        read_runs(shipped("data/runs/nothing"))


def test_shipped_policies_are_found_by_name_and_the_default_one_is_for_the_default_task():
    for name in POLICIES:
        assert find_model(name) == str(shipped(f"data/policies/{name}"))
    config = TrainConfig()
    assert load_task(config.task).name == f"chain:{config.policy}"


def test_the_earlier_name_of_a_policy_is_said_not_taken_for_another():
    with pytest.raises(ErltoolError, match="its name is 'countdown' now"):
        find_model("embedded")


def test_asking_for_the_commit_leaves_the_clones_index_alone(tmp_path):
    """A run wrote the index of the clone it came from, under a lock that stayed where the process was killed."""
    (tmp_path / "file").write_text("1")
    for words in (["init"], ["add", "file"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    index = (tmp_path / ".git/index").read_bytes()
    os.utime(tmp_path / "file", (1, 1))  # git status would write this time into the index
    assert _git(tmp_path, "status", "--porcelain") == "A  file"
    assert (tmp_path / ".git/index").read_bytes() == index
