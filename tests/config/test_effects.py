"""Every setting has an effect or is refused: each is set to another value, and the runs are compared."""

import copy
import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichModelSummary
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator

import chargpt
from tests.training import run_artifacts

TINY = ["data=text_file", "model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=8"]
TINY += ["data.batch_size=4", "trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
TINY += ["data.validation_tokens=512", "callbacks.samples.max_new_tokens=5", "model.initialization.std=0.5"]
TINY += [f"+callbacks.probe._target_={__name__}.Probe"]
MODERN = ["model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=8", *TINY[5:-2], TINY[-1]]
MODERN += ["model/softcap=soft_cap", "model/unet_skips=u_net", "schedule.warmup_steps=1", "data=text_file"]

# Complete runs, by name: overrides.
BASES = {
    "nano": ["model=gpt_nano", *TINY, "model.dropout=0.1", "schedule.warmup_steps=1"],
    "modern": ["model=gpt_modern", *MODERN, "optimizer=muon", "schedule=warmup_stable_decay"],
    "soap": ["model=gpt_modern", *MODERN, "optimizer=soap", "schedule=constant", "optimizer.frequency=2"],
    "sgd": ["model=gpt_nano", *TINY, "optimizer=sgd", "optimizer.lr=0.01", "schedule.warmup_steps=1"],
    "norms": ["model=gpt_nano", *TINY, "model/norm=rms_norm", "model/value_residual=residual"],
    "ensemble": ["model=gpt_ensemble", *MODERN, "model.members=2"],
    "bigram": ["model=bigram", *[o for o in TINY if not o.startswith("model.")]],
    "callbacks": ["model=gpt_nano", *TINY, "callbacks=[early_stopping,lr_monitor,model_summary]", "logger=csv"],
}
# The value of each setting that is not that of the base; with further overrides, which the base of this row has, too.
CHANGES: dict[str, dict[str, Any]] = {
    "nano": {
        "name": "other",
        "seed": 2,
        "resume": "auto",
        "rerun": "nowhere",
        "monitor": "val_bpc",
        "mode": "max",
        "on_divergence": "never",
        "checkpoint.every_n_steps": 3,
        "checkpoint.every_minutes": 1e-6,
        "checkpoint.keep": "weights_only",
        "model.block_size": 4,
        "model.n_layer": 1,
        "model.n_head": 1,
        "model.n_embd": 8,
        "model.dropout": 0.5,
        "model.final_norm": False,
        "model.residual": False,
        "model.embedding_dropout": False,
        "model.tie_weights": False,
        "model.bias": True,
        "model.attention.projection": False,
        "model.attention.qkv_bias": True,
        "model.attention.projection_bias": True,
        "model.norm.bias": True,
        "model.feed_forward.expansion": 2,
        "model.feed_forward.bias": True,
        "model.initialization.std": 0.1,
        "data.block_size": 4,
        "data.batch_size": 8,
        "data.train_fraction": 0.5,
        "data.validation_tokens": 8,
        "data.max_validation_tokens": 64,
        "data.block_warmup": 3,
        "data.seed": 5,
        "data.path": "other.txt",
        "data.suffixes": ("[.md]", "data.path=folder"),
        "trainer.accelerator": "nothing",
        "trainer.devices": 0,
        "trainer.strategy": "nothing",
        "trainer.num_nodes": 2,
        "trainer.precision": "bf16-true",
        "trainer.compile": "nothing",
        "trainer.threads": 2,
        "trainer.deterministic": True,
        "trainer.benchmark": True,
        "trainer.max_steps": 3,
        "trainer.max_epochs": (1, "trainer.limit_train_batches=3"),
        "trainer.max_time": 1e-6,
        "trainer.min_steps": 5,
        "trainer.min_epochs": (2, "trainer.limit_train_batches=3"),
        "trainer.limit_train_batches": (2, "trainer.max_epochs=1"),
        "trainer.overfit_batches": 1,
        "trainer.accumulate_grad_batches": 2,
        "trainer.val_check_interval": 4,
        "trainer.check_val_every_n_epoch": (1, "trainer.limit_train_batches=1"),
        "trainer.limit_val_batches": (1, "data.validation_tokens=8"),
        "trainer.num_sanity_val_steps": 1,
        "trainer.inference_mode": False,
        "trainer.gradient_clip_val": 0.01,
        "trainer.gradient_clip_algorithm": ("value", "trainer.gradient_clip_val=0.01"),
        "trainer.ema_decay": 0.5,
        "trainer.log_every_n_steps": 3,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": True,
        "trainer.enable_autolog_hparams": False,
        "trainer.fast_dev_run": True,
        "trainer.detect_anomaly": True,
        "trainer.profiler": "simple",
        "trainer.barebones": True,
        "trainer.callbacks": "x",
        "trainer.default_root_dir": "x",
        "trainer.enable_checkpointing": False,
        "trainer.limit_predict_batches": 1,
        "trainer.limit_test_batches": 1,
        "trainer.logger": "x",
        "trainer.model_registry": "x",
        "trainer.plugins": "x",
        "trainer.reload_dataloaders_every_n_epochs": 1,
        "trainer.use_distributed_sampler": True,
        "logger.tensorboard.directory": "elsewhere",
        "callbacks.samples.max_new_tokens": 6,
        "callbacks.samples.seed": 5,
        "optimizer.lr": 0.1,
        "optimizer.betas": "[0.5,0.5]",
        "optimizer.weight_decay": 10.0,
        "optimizer.eps": 1.0,
        "optimizer.fused": False,
        "schedule.warmup_steps": 3,
        "schedule.final": 0.9,
    },
    "modern": {
        "model.attention.weights_dropout": (True, "model.dropout=0.5"),
        "model.embedding_norm": False,
        "model.token_dropout": 0.9,
        "model.position.base": 3.0,
        "model.initialization.gain": 2.0,
        "model.initialization.head": False,
        "model.ngram_embedding.lengths": "[2]",
        "model.ngram_embedding.buckets": 64,
        "model.ngram_embedding.dropout": 0.9,
        "model.value_residual.share": 0.9,
        "model.value_residual.std": 2.0,
        "model.unet_skips.weight": (0.1, "model.n_layer=3"),
        "model.softcap.cap": 1.0,
        "model.attention.qk_norm.elementwise_affine": True,
        "model.norm.elementwise_affine": True,
        "optimizer.lr": 0.1,
        "optimizer.momentum": 0.1,
        "optimizer.weight_decay": 1.0,
        "optimizer.orthogonalization_steps": 1,
        "optimizer.orthogonalization_dtype": "bfloat16",
        "optimizer.adamw_lr": 0.1,
        "optimizer.adamw_betas": "[0.1,0.1]",
        "optimizer.adamw_weight_decay": 1.0,
        "optimizer.adamw_eps": 0.1,
        "optimizer.table_lr": 0.1,
        "schedule.decay": 0.5,
        "schedule.final": (0.9, "schedule.decay=0.5"),
    },
    "soap": {
        "optimizer.betas": "[0.1,0.1]",
        "optimizer.shampoo_beta": (0.1, "optimizer.frequency=1", "trainer.max_steps=8"),
        "optimizer.weight_decay": 1.0,
        "optimizer.eps": 0.1,
        "optimizer.frequency": 1,
        "optimizer.adamw_lr": 0.1,
        "schedule.warmup_steps": 3,
    },
    "sgd": {"optimizer.momentum": 0.1, "optimizer.nesterov": True, "optimizer.weight_decay": 1.0},
    "norms": {"model.norm.eps": 0.5, "model.norm.elementwise_affine": False},
    "ensemble": {"model.members": 4},
    "bigram": {"model.std": 0.1, "model.block_size": 4},
    "callbacks": {
        "callbacks.early_stopping.patience": (1, "optimizer.lr=0.0", "trainer.max_steps=12"),
        "callbacks.early_stopping.min_delta": (9.0, "callbacks.early_stopping.patience=1", "trainer.max_steps=12"),
        "callbacks.early_stopping.stopping_threshold": 100.0,
        "callbacks.lr_monitor.logging_interval": "epoch",
        "callbacks.model_summary.max_depth": 1,
        "logger.csv.save_dir": "elsewhere",
        "logger.csv.name": "other",
    },
}
EXEMPT = {
    "optimizer.batched": "the same update in fewer kernels",
    "trainer.sync_batchnorm": "only for batch norm layers on several GPUs",
    "model.ngram_embedding": "null: an option of its group",
    "model.value_residual": "null: an option of its group",
    "model.unet_skips": "null: an option of its group",
    "model.softcap": "null: an option of its group",
}


class Probe(L.Callback):
    """Records what a run does and what it sets outside of its results."""

    record: ClassVar[dict[str, Any]] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        self.record.update(
            deterministic=torch.are_deterministic_algorithms_enabled(),
            benchmark=torch.backends.cudnn.benchmark,
            anomaly=torch.is_anomaly_enabled(),
            threads=torch.get_num_threads(),
            optimizer=str(sorted(trainer.optimizers[0].defaults.items(), key=str)),
            depth=[
                c._model_summary_max_depth if hasattr(c, "_model_summary_max_depth") else c._max_depth
                for c in trainer.callbacks
                if isinstance(c, RichModelSummary)
            ],
        )

    def on_validation_batch_start(self, trainer, pl_module, batch, *_) -> None:
        self.record.setdefault("validation", []).append(tuple(batch[0].shape))

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        self.record.setdefault("checkpoints", []).append(checkpoint["global_step"])


def fingerprint(run: Path, output: str) -> dict[str, Any]:
    """What a run has produced, without times."""
    names = [path.stem for path in sorted(run.glob("checkpoints/*.ckpt"))]
    digest = hashlib.sha256()
    for state in (run_artifacts.checkpoint(run, name) for name in names):
        for name, weight in sorted(state["state_dict"].items()):
            digest.update(name.encode() + weight.float().numpy().tobytes())
    events = EventAccumulator(str(run), STORE_EVERYTHING_SIZE_GUIDANCE).Reload()
    tags = events.Tags()
    samples = [
        event.tensor_proto.string_val for tag in tags["tensors"] if "sample" in tag for event in events.Tensors(tag)
    ]
    timed = ("_seconds", "_second")
    return {
        "record": copy.deepcopy(Probe.record),
        "weights": digest.hexdigest(),
        "history": [{k: v for k, v in row.items() if not k.endswith(timed)} for row in run_artifacts.history(run)],
        "metrics": {k: v for k, v in run_artifacts.metrics(run).items() if not k.endswith(timed)},
        "csv": [line.rsplit(",", 1)[0] for p in run.rglob("csv/**/metrics.csv") for line in p.read_text().splitlines()],
        "files": sorted(str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name),
        "tags": (tags["scalars"], sorted(map(str, events.summary_metadata)), list(map(str, samples))),
        "folder": run.parent.relative_to(run.parents[2]) if len(run.parents) > 2 else run.parent,
        "auto": "," in run.name or "=" in run.name,
        "output": "Params" in output,
        "lines": output.count("tokens/s"),
    }


@pytest.fixture
def outcome_of(run_cli, tmp_path, text, caplog, monkeypatch):
    """A function that runs overrides and returns the fingerprint, or the message of the refusal."""
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "other.txt").write_text(text[::-1])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text(text)
    (tmp_path / "folder" / "b.md").write_text(text[::-1])
    caplog.set_level(logging.INFO)
    threads = torch.get_num_threads()

    def run(overrides: list[str]) -> dict[str, Any] | str:
        Probe.record.clear()
        caplog.clear()
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        outcome = run_cli("train", "data.path=text.txt", *overrides)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
        torch.set_num_threads(threads)
        if outcome.code == 2:
            assert not (tmp_path / "outputs").exists()
            return outcome.err
        assert outcome.code == 0, (overrides, outcome.err)
        (metrics,) = (tmp_path / "outputs").rglob("metrics.json")
        return fingerprint(metrics.parent, caplog.text + outcome.out + outcome.err)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_every_setting_changes_something_or_is_refused(base, outcome_of):
    bases: dict[tuple[str, ...], Any] = {}
    without_effect = []
    for key, change in CHANGES[base].items():
        value, *context = change if isinstance(change, tuple) else (change,)
        overrides = [*BASES[base], *context]
        if tuple(context) not in bases:
            bases[tuple(context)] = outcome_of(overrides)
            assert isinstance(bases[tuple(context)], dict), "the base itself is refused"
        shown = str(value).lower() if isinstance(value, bool) else value
        kept = [override for override in overrides if override.partition("=")[0] != key]
        result = outcome_of([*kept, f"{key}={shown}"])
        if result == bases[tuple(context)]:
            without_effect.append(key)
        if isinstance(result, str):
            assert key.rpartition(".")[2] in result or str(value) in result, "a refusal names the setting"
    assert not without_effect


def test_the_same_settings_have_the_same_effects(outcome_of):
    assert outcome_of(BASES["nano"]) == outcome_of(BASES["nano"])


def settings_of(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if isinstance(value, dict) and value:
            yield from settings_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("base", BASES)
def test_every_setting_is_tested(base):
    """A new setting needs a row in `CHANGES`, or a reason in `EXEMPT`."""
    config = chargpt.compose(["data.path=text.txt", *BASES[base][:1], *BASES[base][1:]])
    tested = {key for rows in CHANGES.values() for key in rows}
    assert {key for key in settings_of(config) if key not in tested and key not in EXEMPT} == set()
