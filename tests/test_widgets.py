"""Widgets as values: state, result, picture and fallbacks, without a browser."""

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import erltool
from erltool import ErltoolError, bandit
from erltool.widgets import EntropyLab

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
     dict(probabilities=[0.5, float("nan")], advantages=[1.0, 0.0]), dict(advantages=[1.0]),
     dict(advantages=[1.0, 0.0, 0.0, float("inf")])],
)  # fmt: skip
def test_entropy_lab_names_what_is_wrong(bad):
    with pytest.raises(ErltoolError, match="EntropyLab: "):
        EntropyLab(**bad)


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
