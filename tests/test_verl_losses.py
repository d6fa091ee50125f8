"""Controls inside verl: its own worker, engine and losses run, on the CPU (tests/verl_job.py). Needs verl 0.9."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from erltool import ErltoolError, policy_loss
from erltool.controls.catalog import CONTROLS, control_to_dict, parse_control
from erltool.entropy.tokens import Tokens
from erltool.runs.compare import control_text
from erltool.training.update import CONTROL, generator

pytestmark = pytest.mark.slow  # verl takes a minute to import
GIVEN = {"token_entropy"}  # optional fields of Tokens that verl gives
INSIDE = [name for name, kind in CONTROLS.items() if set(kind.needs) <= GIVEN]
WIDE = {"clip-cov": "clip-cov:fraction=1.0,low=0.05,high=9.0", "kl-cov": "kl-cov:fraction=0.2,coef=0.7"}


@pytest.fixture(scope="module")
def job():
    if importlib.util.find_spec("verl") is None:
        pytest.skip("verl is not installed")
    pytest.importorskip("verl.workers.engine_workers", exc_type=ImportError)
    import verl_job

    verl_job.start()
    yield verl_job
    torch.distributed.destroy_process_group()


def gradient(job, loss_mode, micro_batch, data=None, **settings):
    """The gradient of an update, as verl's engine hands it to the optimiser, and the update's metrics."""
    from erltool.engines.verl_losses import ControlledWorker

    worker = object.__new__(ControlledWorker)  # without Ray
    worker.engine = job.Engine()
    worker.set_loss_fn(job.loss_of(job.actor_config(loss_mode, clip_ratio_c=1e6, **settings)))
    data = job.settings_of(job.update() if data is None else data, micro_batch)
    with worker.engine.train_mode():
        out = worker.engine.train_batch(data, worker.loss_fn)
    return worker.engine.gradients[0], out["metrics"]


def ours(job, text, data):
    """The gradient of erltool's own loss of the same update."""
    table = job.Table()
    ids, mask = torch.cat([data["prompts"], data["responses"]], 1), data["response_mask"].bool()
    all_log_probs = table(ids[:, job.PROMPT - 1 : -1]).logits.log_softmax(-1)
    log_probs = all_log_probs.gather(-1, ids[:, job.PROMPT :, None])[..., 0]
    entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
    draws = generator(42, CONTROL, 0, torch.device("cpu"))  # 42 is verl's data_loader_seed
    out = policy_loss(
        log_probs, data["old_log_probs"], data["advantages"], mask,
        control=parse_control(text), generator=draws, token_entropy=entropy,
    )  # fmt: skip
    out.loss.backward()
    return table.table.grad


@pytest.mark.parametrize("name", INSIDE)
def test_micro_batches_of_any_size_give_the_gradient_of_erltools_own_loss(job, name):
    text = control_text(control_to_dict(parse_control(WIDE.get(name, name))))
    expected = ours(job, text, job.update())
    for micro_batch in (1, 2, 8):
        found, _ = gradient(job, f"erltool:{text}", micro_batch)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("own, settings, text", [
    ("vanilla", {}, "none"),
    ("vanilla", {"clip_ratio_high": 0.28}, "clip-higher"),
    ("kl_cov", {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7}, WIDE["kl-cov"]),
    ("clip_cov", {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.05, "clip_cov_ub": 9.0}, WIDE["clip-cov"]),
    ("gspo", {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2, "loss_agg_mode": "seq-mean-token-mean"},
     "gspo:clip_eps_low=0.1,clip_eps_high=0.2"),
])  # fmt: skip
def test_an_update_in_one_micro_batch_has_verls_own_gradient(job, own, settings, text):
    theirs, metrics = gradient(job, own, 8, **settings)
    found, ours = gradient(job, f"erltool:{text}", 8, **settings)
    torch.testing.assert_close(found, theirs)
    loss, same = (m["actor/pg_loss"].aggregate() for m in (metrics, ours))
    assert same == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("own, settings, text", [
    ("kl_cov", {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7}, WIDE["kl-cov"]),
    ("clip_cov", {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.05, "clip_cov_ub": 9.0}, WIDE["clip-cov"]),
])  # fmt: skip
def test_verls_own_choice_depends_on_the_micro_batch_and_ours_does_not(job, own, settings, text):
    whole, one = (gradient(job, own, size, **settings)[0] for size in (8, 1))
    assert (whole - one).norm() > 0.05 * whole.norm()  # what this module is for
    whole, one = (gradient(job, f"erltool:{text}", size)[0] for size in (8, 1))
    torch.testing.assert_close(one, whole)


def test_rounding_of_old_log_probs_triggers_verls_penalty_and_not_ours(job):
    plain, _ = gradient(job, "vanilla", 8, job.update(moved=0.0))
    theirs, _ = gradient(job, "kl_cov", 8, job.update(moved=1e-6), kl_cov_ratio=0.2, ppo_kl_coef=1.0)
    ours, _ = gradient(job, "erltool:kl-cov:fraction=0.2", 8, job.update(moved=1e-6))
    torch.testing.assert_close(ours, plain)
    assert (theirs - plain).norm() > 0.1 * plain.norm()


def test_nested_columns_and_packed_micro_batches_change_nothing(job):
    text = f"erltool:{WIDE['kl-cov']}+entropy-bonus:below=9.0"
    expected, _ = gradient(job, text, 8)
    found, _ = gradient(job, text, 2, job.update(nested=True))
    torch.testing.assert_close(found, expected)
    packed = job.update()
    job.tu.assign_non_tensor(packed, max_token_len_per_gpu=16)
    from erltool.engines.verl_losses import ControlledWorker

    worker = object.__new__(ControlledWorker)
    worker.engine = job.Engine()
    worker.set_loss_fn(job.loss_of(job.actor_config(text)))
    packed = job.settings_of(packed, 8, packed=True)
    with worker.engine.train_mode():
        worker.engine.train_batch(packed, worker.loss_fn)
    torch.testing.assert_close(worker.engine.gradients[0], expected)


def test_a_rollout_of_two_updates_in_verls_own_loop(job):
    """The worker's `train_mini_batch`: data as sampled, so the first update is on policy and the second is not."""
    rows = {}
    for text in ("none", "kl-cov:fraction=0.2,coef=5.0"):
        for micro_batch in (1, 4):
            rows[text, micro_batch] = job.train_mini_batch(f"erltool:{text}", micro_batch)
    for (text, _), (gradients, metrics) in rows.items():
        for found, expected in zip(gradients, rows[text, 4][0], strict=True):
            torch.testing.assert_close(found, expected)
        assert {"actor/selected_fraction", "actor/mean_covariance", "actor/pg_clipfrac"} <= set(metrics)
    (first, second), (plain_first, plain_second) = rows["kl-cov:fraction=0.2,coef=5.0", 1][0], rows["none", 1][0]
    torch.testing.assert_close(first, plain_first)  # the penalty is silent where the ratio is 1
    assert (second - plain_second).norm() > 0.05 * plain_second.norm()


def test_two_ranks_choose_as_one_would(job, tmp_path):
    expected, _ = gradient(job, f"erltool:{WIDE['kl-cov']}+entropy-bonus:below=9.0", 8, job.update(seed=2))
    script = Path(__file__).with_name("verl_job.py")
    ranks = [subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(600) for process in ranks] == [0, 0]
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


@pytest.mark.parametrize("loss_mode, settings, message", [
    ("erltool:kl-kov", {}, "loss_mode=erltool:kl-kov: control 'kl-kov' is not known"),
    ("erltool:opefo", {}, "loss_mode=erltool:opefo: the control needs entropy_slope, which verl does not give"),
    ("erltool:kl-cov+reference-kl", {}, "reference-kl is verl's own use_kl_loss; leave it out here"),
    ("erltool:entropy-bonus", {"entropy_coeff": 0.1}, "entropy_coeff=0.1: control entropy-bonus rewards entropy too"),
])  # fmt: skip
def test_what_verl_cannot_give_is_refused_in_one_line(job, loss_mode, settings, message):
    with pytest.raises(ErltoolError) as raised:
        gradient(job, loss_mode, 8, **settings)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_without_the_worker_the_loss_says_what_is_missing(job):
    from erltool.engines.verl_losses import policy_loss as registered

    columns = [torch.zeros(2, 3)] * 3
    with pytest.raises(ErltoolError, match="external_lib=erltool.engines.verl_losses"):
        registered(*columns, torch.ones(2, 3))


def test_verls_registry_and_worker_have_it(job):
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from erltool.engines import verl_losses

    gradient(job, "erltool:random-clip:fraction=0.3", 4)
    assert get_policy_loss_fn("erltool:random-clip:fraction=0.3") is verl_losses.policy_loss
    assert ActorRolloutRefWorker.actor_worker_cls is verl_losses.ControlledWorker
    assert set(Tokens._fields) > GIVEN
