"""Runs whose n-gram tables have sparse gradients (optimizer.table_lr)."""

from pathlib import Path

import pytest

from chargpt.training.lightning_module import LanguageModeling
from tests.conftest import process
from tests.training import run_artifacts


@pytest.fixture
def lazy(tiny) -> list[str]:
    """A tiny gpt_modern with rows that are updated only if they occur."""
    settings = ["model=gpt_modern", "model.token_dropout=0", "model.ngram_embedding.dropout=0", "model.dropout=0"]
    settings += ["optimizer.table_lr=0.03", "callbacks.samples.max_new_tokens=0"]
    return [*(setting for setting in tiny if not setting.startswith(("model=", "model.dropout="))), *settings]


SIGTERM = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", "+callbacks.signal.name=SIGTERM"]
SIGTERM += ["+callbacks.signal.batch=13"]


@pytest.fixture
def gradient_kinds(monkeypatch) -> set[bool]:
    """Whether gradients were sparse."""
    kinds, clip = set(), LanguageModeling.configure_gradient_clipping

    def record(self, *arguments, **settings):
        kinds.update(p.grad.is_sparse for p in self.parameters())
        clip(self, *arguments, **settings)

    monkeypatch.setattr(LanguageModeling, "configure_gradient_clipping", record)
    return kinds


def losses(run: Path) -> list[float]:
    return [float(row["train_loss"]) for row in run_artifacts.history(run) if row["train_loss"]]


CLIPPING = {
    "none": [],
    "norm": ["trainer.gradient_clip_val=0.1"],
    "value": ["trainer.gradient_clip_val=0.001", "trainer.gradient_clip_algorithm=value"],
}


@pytest.mark.parametrize("clipping", CLIPPING.values(), ids=CLIPPING)
def test_sparse_gradients_train_as_dense_ones_do(run_cli, lazy, tmp_path, monkeypatch, gradient_kinds, clipping):
    settings = [*lazy, *clipping, "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=2"]
    assert run_cli("train", *settings, "hydra.run.dir=sparse").code == 0
    assert gradient_kinds == {True, False}  # of tables and of other parameters
    gradient_kinds.clear()
    monkeypatch.setattr("chargpt.training.lightning_module.SingleDeviceStrategy", type(None))
    assert run_cli("train", *settings, "hydra.run.dir=dense").code == 0
    assert gradient_kinds == {False}
    sparse, dense = (run_artifacts.history(tmp_path / name) for name in ("sparse", "dense"))
    for key in ("train_loss", "grad_norm"):
        values = [[float(row[key]) for row in rows if row[key]] for rows in (sparse, dense)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), key
    assert losses(tmp_path / "sparse")[-1] < losses(tmp_path / "sparse")[0]


def test_without_a_learning_rate_for_tables_gradients_are_dense(run_cli, lazy, gradient_kinds):
    assert run_cli("train", *lazy, "optimizer.table_lr=null").code == 0
    assert gradient_kinds == {False}


def test_a_run_with_sparse_gradients_resumes_exactly(run_cli, lazy, tmp_path):
    assert run_cli("train", *lazy, "hydra.run.dir=whole").code == 0
    assert run_cli("train", *lazy, *SIGTERM, "hydra.run.dir=cut").code == 3
    assert run_cli("train", "resume=cut").code == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    states = (run_artifacts.training_state(tmp_path / name) for name in ("cut", "whole"))
    assert not run_artifacts.differences(*states)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [["trainer.devices=2"], ["trainer=ddp", "trainer.accelerator=cpu"], ["trainer.compile=true"]],
    ids=" ".join,
)
def test_ddp_and_compiled_runs_train_tables_with_dense_gradients(run_cli, lazy, tmp_path, settings):
    assert run_cli("train", *lazy, "hydra.run.dir=one").code == 0
    outcome = process(tmp_path, "train", *lazy, *settings, "hydra.run.dir=other")
    assert outcome.code == 0, outcome.err
    assert losses(tmp_path / "other")[-1] == pytest.approx(losses(tmp_path / "one")[-1], abs=0.05)
