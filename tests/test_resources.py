"""Where the package's own data is, and what is said where it is not."""

import pytest

from erltool import ErltoolError, read_runs
from erltool.resources import shipped


def test_what_is_shipped_is_found_and_what_is_missing_has_a_remedy():
    assert shipped("data/policies/embedded/config.json").is_file()
    with pytest.raises(ErltoolError, match=r"^data/runs/nothing is missing beside .*; install erltool again from one$"):
        read_runs(shipped("data/runs/nothing"))
