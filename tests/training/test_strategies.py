"""FSDP on two CPU processes: it learns what DDP learns, and a run may be resumed with either."""

import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import FSDPPrecision
from torch import nn
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader

from chargpt.training.strategies import WRAPPER, ShardedStrategy, make_strategy
from tests.conftest import process
from tests.training import run_artifacts

SHARDED = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
PARALLEL = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
# Value residuals pass from block to block what the wrapper of a block must not copy.
WORDS = ["model.dropout=0", "model/value_residual=residual", "schedule=constant", "trainer.log_every_n_steps=1"]
WORDS += ["callbacks.samples.max_new_tokens=0", "trainer.gradient_clip_val=0.5"]
UNITS = "+callbacks.units._target_=tests.training.fault_injection.CountUnits"


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Path:
    """A folder with one run by DDP and one by FSDP, of 20 steps each."""
    folder = tmp_path_factory.mktemp("strategies")
    for name, strategy in {"ddp": PARALLEL, "fsdp": [*SHARDED, UNITS]}.items():
        outcome = process(folder, "train", *tiny, *WORDS, *strategy, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    return folder


@pytest.mark.slow
def test_fsdp_learns_what_ddp_learns(runs):
    mine, theirs = (run_artifacts.checkpoint(runs / name)["state_dict"] for name in ("fsdp", "ddp"))
    assert mine.keys() == theirs.keys()
    for name, weights in mine.items():
        torch.testing.assert_close(weights, theirs[name], rtol=0, atol=1e-5, msg=name)
    mine, theirs = (run_artifacts.metrics(runs / name) for name in ("fsdp", "ddp"))
    assert mine["final_val_loss"] == pytest.approx(theirs["final_val_loss"], abs=1e-5)
    assert {k: mine[k] for k in ("parameters", "flops_per_token")} == {
        k: theirs[k] for k in ("parameters", "flops_per_token")
    }


@pytest.mark.slow
def test_each_block_is_a_unit_of_fsdp(runs):
    assert (runs / "fsdp" / "units.txt").read_text() == "3", "two blocks and the rest"


@pytest.mark.slow
def test_fsdp_decays_matrices_alone_and_numbers_its_state_as_ddp_does(runs):
    mine, theirs = (run_artifacts.checkpoint(runs / name)["optimizer_states"][0] for name in ("fsdp", "ddp"))
    assert [group["weight_decay"] for group in mine["param_groups"]] == [0.1, 0.0]
    assert [group["params"] for group in mine["param_groups"]] == [g["params"] for g in theirs["param_groups"]]
    for number, state in theirs["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(mine["state"][number][name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("fsdp", SHARDED), ("ddp", SHARDED), ("fsdp", PARALLEL)])
def test_a_run_is_resumed_with_either_strategy(runs, tiny, tmp_path, first, then):
    shutil.copytree(runs / first, tmp_path / "run")
    outcome = process(tmp_path, "train", "resume=run", *then, "trainer.max_steps=30")
    assert outcome.code == 0, outcome.err
    uncut = [*tiny, *WORDS, "trainer=cpu", "trainer.max_steps=30", "hydra.run.dir=uncut"]
    assert process(tmp_path, "train", *uncut).code == 0
    resumed, uncut = (run_artifacts.history(tmp_path / name, "step", "train_loss") for name in ("run", "uncut"))
    assert [row["step"] for row in resumed] == [row["step"] for row in uncut]
    for mine, theirs in zip(resumed, uncut, strict=True):
        assert float(mine["train_loss"]) == pytest.approx(float(theirs["train_loss"]), abs=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "soap"])
def test_optimizers_of_whole_matrices_are_refused_before_anything_is_started(tiny, tmp_path, optimizer):
    outcome = process(tmp_path, "train", *tiny, *SHARDED, f"optimizer={optimizer}")
    assert outcome.code == 2
    assert "trainer=ddp, or optimizer=adamw" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "parameters"),
    [
        ("bf16-mixed", torch.float32),
        ("16-mixed", torch.float32),
        ("32-true", torch.float32),
        ("bf16-true", torch.bfloat16),
    ],
)
def test_fsdp_reduces_gradients_and_keeps_buffers_in_float32(precision, parameters):
    """In mixed precision autocast decides what is cast, as without FSDP."""
    strategy = make_strategy("fsdp", several=True)
    assert isinstance(strategy, ShardedStrategy)
    strategy.precision_plugin = FSDPPrecision(precision)
    config = strategy.mixed_precision_config
    assert (config.reduce_dtype, config.buffer_dtype) == (torch.float32, torch.float32)
    assert config.param_dtype == parameters


def test_ddp_sends_no_buffers_round_and_strategies_of_lightnings_are_left_to_it():
    settings = make_strategy("ddp", several=True)._ddp_kwargs
    assert settings.pop("gradient_as_bucket_view") is True
    assert list(settings.values()) == [False]
    assert make_strategy("auto", several=True)._ddp_kwargs
    assert make_strategy("auto", several=False) == "auto"
    assert make_strategy("deepspeed", several=True) == "deepspeed"


class Sharded(ShardedStrategy):
    """Notes when Lightning has the model wrapped."""

    wrapped: tuple[nn.Module, list[str]] | None = None

    def _setup_model(self, model: nn.Module) -> nn.Module:
        names = [name for name, _ in model.named_parameters()]
        wrapper = super()._setup_model(model)
        self.wrapped = wrapper, names
        return wrapper


class Small(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, x):
        return self.inner(x).sum()


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_is_taken_from_inside_lightning_and_fsdp_is_still_there(alone, monkeypatch):
    """Lightning has the model wrapped by `_setup_model`, and FSDP puts `WRAPPER` into names."""
    for variable in ("MASTER_ADDR", "MASTER_PORT"):  # which Lightning sets
        monkeypatch.setenv(variable, "1")
    strategy = Sharded(auto_wrap_policy=ModuleWrapPolicy({nn.Linear}))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(accelerator="cpu", devices=1, strategy=strategy, max_steps=1, **quiet)
    trainer.fit(Small(), DataLoader(torch.ones(2, 3)))
    assert strategy.wrapped is not None, "Lightning no longer calls it"
    wrapper, names = strategy.wrapped
    assert strategy.model is wrapper
    inside = [name for name, _ in wrapper.named_parameters()]
    assert all(WRAPPER in name for name in inside)
    assert [name.replace(WRAPPER, "") for name in inside] == names
    (optimizer,) = trainer.optimizers
    assert strategy._names(optimizer) == [names]
