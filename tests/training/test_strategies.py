"""FSDP on two CPU processes: it trains as DDP does, and a run can be resumed with either strategy."""

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
# With value residuals, blocks share a `BlockContext`, which the wrapper of a block must not copy.
OVERRIDES = ["model.dropout=0", "model/value_residual=residual", "schedule=constant", "trainer.log_every_n_steps=1"]
OVERRIDES += ["callbacks.samples.max_new_tokens=0", "trainer.gradient_clip_val=0.5"]
UNITS = "+callbacks.units._target_=tests.training.fault_injection.CountUnits"


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Path:
    """A directory with one DDP run and one FSDP run, of 20 steps each."""
    directory = tmp_path_factory.mktemp("strategies")
    for name, strategy in {"ddp": PARALLEL, "fsdp": [*SHARDED, UNITS]}.items():
        outcome = process(directory, "train", *tiny, *OVERRIDES, *strategy, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    return directory


@pytest.mark.slow
def test_fsdp_trains_the_same_weights_as_ddp(runs):
    fsdp, ddp = (run_artifacts.checkpoint(runs / name)["state_dict"] for name in ("fsdp", "ddp"))
    assert fsdp.keys() == ddp.keys()
    for name, weights in fsdp.items():
        torch.testing.assert_close(weights, ddp[name], rtol=0, atol=1e-5, msg=name)
    fsdp, ddp = (run_artifacts.metrics(runs / name) for name in ("fsdp", "ddp"))
    assert fsdp["final_val_loss"] == pytest.approx(ddp["final_val_loss"], abs=1e-5)
    assert {key: fsdp[key] for key in ("parameters", "flops_per_token")} == {
        key: ddp[key] for key in ("parameters", "flops_per_token")
    }


@pytest.mark.slow
def test_fsdp_wraps_each_block_as_a_unit(runs):
    assert (runs / "fsdp" / "units.txt").read_text() == "3", "two blocks and the root"


@pytest.mark.slow
def test_fsdp_saves_the_same_parameter_groups_and_optimizer_state_as_ddp(runs):
    fsdp, ddp = (run_artifacts.checkpoint(runs / name)["optimizer_states"][0] for name in ("fsdp", "ddp"))
    assert [group["weight_decay"] for group in fsdp["param_groups"]] == [0.1, 0.0]
    assert [group["params"] for group in fsdp["param_groups"]] == [group["params"] for group in ddp["param_groups"]]
    for number, state in ddp["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(fsdp["state"][number][name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("fsdp", SHARDED), ("ddp", SHARDED), ("fsdp", PARALLEL)])
def test_a_run_can_be_resumed_with_either_strategy(runs, tiny, tmp_path, first, second):
    shutil.copytree(runs / first, tmp_path / "run")
    outcome = process(tmp_path, "train", "resume=run", *second, "trainer.max_steps=30")
    assert outcome.code == 0, outcome.err
    uninterrupted = [*tiny, *OVERRIDES, "trainer=cpu", "trainer.max_steps=30", "hydra.run.dir=uninterrupted"]
    assert process(tmp_path, "train", *uninterrupted).code == 0
    rows, expected = (run_artifacts.history(tmp_path / name, "step", "train_loss") for name in ("run", "uninterrupted"))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, expected_row in zip(rows, expected, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(expected_row["train_loss"]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "soap"])
def test_fsdp_with_a_matrix_optimizer_is_a_user_error(tiny, tmp_path, optimizer):
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
    """With mixed precision, autocast selects the operations that run in 16 bits, as without FSDP."""
    strategy = make_strategy("fsdp", distributed=True)
    assert isinstance(strategy, ShardedStrategy)
    strategy.precision_plugin = FSDPPrecision(precision)
    config = strategy.mixed_precision_config
    assert (config.reduce_dtype, config.buffer_dtype) == (torch.float32, torch.float32)
    assert config.param_dtype == parameters


def test_ddp_broadcasts_no_buffers_and_other_strategies_are_left_to_lightning():
    settings = make_strategy("ddp", distributed=True)._ddp_kwargs
    assert settings.pop("gradient_as_bucket_view") is True
    assert list(settings.values()) == [False]
    assert make_strategy("auto", distributed=True)._ddp_kwargs
    assert make_strategy("auto", distributed=False) == "auto"
    assert make_strategy("deepspeed", distributed=True) == "deepspeed"


class Sharded(ShardedStrategy):
    """Records the call by which Lightning wraps the model."""

    wrapped: tuple[nn.Module, list[str]] | None = None

    def _setup_model(self, model: nn.Module) -> nn.Module:
        names = [name for name, _ in model.named_parameters()]
        wrapper = super()._setup_model(model)
        self.wrapped = wrapper, names
        return wrapper


class SmallModule(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, x):
        return self.inner(x).sum()


@pytest.fixture
def process_group():
    """A process group of world size 1."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_private_names_of_lightning_and_fsdp_still_exist(process_group, monkeypatch):
    """Lightning wraps the model by `_setup_model`, and FSDP inserts `WRAPPER` into parameter names."""
    for variable in ("MASTER_ADDR", "MASTER_PORT"):  # Lightning sets them; monkeypatch restores them
        monkeypatch.setenv(variable, "1")
    strategy = Sharded(auto_wrap_policy=ModuleWrapPolicy({nn.Linear}))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(accelerator="cpu", devices=1, strategy=strategy, max_steps=1, **quiet)
    trainer.fit(SmallModule(), DataLoader(torch.ones(2, 3)))
    assert strategy.wrapped is not None, "Lightning no longer calls _setup_model"
    wrapper, names = strategy.wrapped
    assert strategy.model is wrapper
    wrapped_names = [name for name, _ in wrapper.named_parameters()]
    assert all(WRAPPER in name for name in wrapped_names)
    assert [name.replace(WRAPPER, "") for name in wrapped_names] == names
    (optimizer,) = trainer.optimizers
    assert strategy._names(optimizer) == [names]
