"""The run directory of a finished run: its files, metrics, checkpoints, and the outcome of failed runs."""

import contextlib
import hashlib
import math
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import chargpt
from chargpt.utils.atomic_write import atomic_write
from tests.conftest import REPO
from tests.training import run_artifacts

METRICS = {
    *("val_loss", "final_val_loss", "initial_loss", "val_bpc", "val_perplexity", "best_step", "steps"),
    *("train_seconds", "validation_seconds", "checkpoint_seconds", "setup_seconds", "wall_seconds"),
    *("tokens_per_second", "parameters", "flops_per_token"),
    *("corpus", "corpus_sha256", "seed", "devices", "torch", "device"),
}


def test_a_finished_run_contains_exactly_the_documented_files(finished):
    files = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    events = {file for file in files if file.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
        *("provenance.json", "status.json", "history.csv", "metrics.json", "sample.txt", "train.log", ".lock"),
        *(
            "checkpoints/last.ckpt",
            "checkpoints/previous.ckpt",
            "checkpoints/best.ckpt",
            "checkpoints/draft.safetensors",
        ),
    }


def test_the_status_is_finished_at_the_last_step(finished):
    status = run_artifacts.status(finished)
    assert (status["state"], status["step"], status["reason"]) == ("finished", 20, "")


def test_history_has_the_documented_columns_and_one_row_per_logged_step(finished):
    rows = run_artifacts.history(finished)
    assert list(rows[0]) == ["step", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second", "val_bpc"]
    assert [row["step"] for row in rows] == ["1", "5", "10", "15", "20"]
    assert [row["step"] for row in rows if row["val_loss"]] == ["10", "20"]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)


def test_metrics_are_flat_and_have_the_documented_keys(finished):
    metrics = run_artifacts.metrics(finished)
    assert metrics.keys() >= METRICS
    assert {type(value) for value in metrics.values()} <= {int, float, str}


def test_metrics_are_consistent_with_history_and_each_other(finished, text):
    metrics, rows = run_artifacts.metrics(finished), run_artifacts.history(finished)
    losses = {int(row["step"]): float(row["val_loss"]) for row in rows if row["val_loss"]}
    assert metrics["val_loss"] == min(losses.values()) == losses[metrics["best_step"]]
    assert metrics["final_val_loss"] == losses[metrics["steps"]]
    assert metrics["initial_loss"] == float(rows[0]["train_loss"]) == pytest.approx(math.log(32), abs=0.1)
    assert metrics["val_perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))
    assert metrics["val_bpc"] == pytest.approx(metrics["val_loss"] / math.log(2))
    tokens = metrics["tokens_per_second"] * metrics["train_seconds"]
    assert tokens == pytest.approx(20 * 4 * 16)
    assert 0 < metrics["train_seconds"] < metrics["wall_seconds"]
    assert metrics["parameters"] == sum(p.numel() for p in chargpt.load(finished).model.parameters())
    assert metrics["corpus_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (metrics["corpus"], metrics["seed"], metrics["devices"]) == ("nonsense.txt", 1337, 1)
    assert (metrics["torch"], metrics["device"]) == (torch.__version__, "cpu")


def test_provenance_records_data_versions_and_command(finished, text, tiny):
    record = run_artifacts.provenance(finished)
    assert record["corpus_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert record["versions"]["torch"] == version("torch")
    assert record["versions"].keys() >= {"chargpt", "torch", "lightning", "hydra-core", "numpy"}
    command = " ".join(record["command"]).replace("'", "")
    assert command == " ".join(["train.py", *tiny, f"hydra.run.dir={finished}"])
    assert record.keys() >= {"python", "host", "devices", "device", "git_commit", "git_dirty"}
    assert record["devices"] == 1


def test_provenance_records_the_commit(finished):
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPO, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("the code is not in a git repository")
    commit = run_artifacts.provenance(finished)["git_commit"]
    result = subprocess.run(["git", "cat-file", "-t", commit], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "commit"


def is_plain(data) -> bool:
    if isinstance(data, dict):
        return all(isinstance(key, str) and is_plain(value) for key, value in data.items())
    if isinstance(data, list):
        return all(map(is_plain, data))
    return data is None or type(data) in (str, int, float, bool)


@pytest.mark.parametrize(("name", "step"), [("best", 20), ("last", 20), ("previous", 10)])
def test_each_checkpoint_is_self_contained_plain_data_and_safe_to_load(finished, text, name, step):
    checkpoint = run_artifacts.checkpoint(finished, name)  # with weights_only=True
    assert checkpoint["global_step"] == step
    content = checkpoint["chargpt"]
    assert is_plain(content)
    assert set(content["tokenizer"]["characters"]) == set(text)
    saved = OmegaConf.to_container(OmegaConf.load(finished / ".hydra" / "config.yaml"), resolve=False)
    assert content["config"]["model"] == saved["model"]
    assert {key: saved[key] for key in content["config"]} == content["config"]
    trained = chargpt.load(finished / "checkpoints" / f"{name}.ckpt")
    assert trained.model(torch.zeros(1, 16, dtype=torch.long)).shape == (1, 16, len(set(text)))


def test_the_checkpoints_are_one_validation_apart(finished):
    last, previous = run_artifacts.checkpoint(finished, "last"), run_artifacts.checkpoint(finished, "previous")
    assert run_artifacts.differences(last["state_dict"], previous["state_dict"])


def test_the_sample_is_generated_from_the_best_checkpoint(finished):
    best = chargpt.load(finished / "checkpoints" / "best.ckpt")
    pieces = best.stream("\n", 500, seed=1337)
    assert (finished / "sample.txt").read_text() == "\n" + "".join(piece for (piece,) in pieces) + "\n"


def test_the_log_contains_the_header_and_each_validation_as_plain_text(finished):
    log = (finished / "train.log").read_text()
    assert re.findall(r"step +(\d+) +train \d+\.\d+ +val \d+\.\d+", log) == ["10", "20"]
    assert "6,992 parameters" in log
    assert not re.search(r"[^\n -~]", log)


def test_the_best_checkpoint_is_kept_if_later_ones_are_worse(run_cli, tiny, tmp_path: Path):
    """Step 8 has too high a learning rate, so the validations at 9 and 12 are worse than that at 6."""
    overrides = ["trainer.max_steps=12", "trainer.val_check_interval=3", "optimizer.lr=0.01", "schedule=constant"]
    fault = ["_target_=tests.training.fault_injection.Fault", "step=8", "lr=3.0"]
    outcome = run_cli(
        "train", *tiny, *overrides, *(f"+callbacks.fault.{override}" for override in fault), "hydra.run.dir=run"
    )
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    metrics = run_artifacts.metrics(run)
    losses = {int(row["step"]): float(row["val_loss"]) for row in run_artifacts.history(run) if row["val_loss"]}
    assert list(losses) == [3, 6, 9, 12]
    assert metrics["best_step"] == min(losses, key=losses.get) == 6
    assert (metrics["val_loss"], metrics["final_val_loss"]) == (losses[6], losses[12])
    assert run_artifacts.checkpoint(run, "best")["global_step"] == 6
    assert chargpt.load(run).step == 6
    best = run_artifacts.checkpoint(run, "best")
    assert best["callbacks"]["Curves"]["best_val_loss"] == best["callbacks"]["Curves"]["val_loss"] == losses[6]


def test_with_gradient_accumulation_steps_are_optimizer_steps_and_tokens_count_all_passes(
    run_cli, tiny, tmp_path: Path
):
    overrides = ["trainer.accumulate_grad_batches=3", "trainer.max_steps=5", "trainer.val_check_interval=2"]
    outcome = run_cli("train", *tiny, *overrides, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    metrics = run_artifacts.metrics(run)
    assert metrics["steps"] == run_artifacts.checkpoint(run)["global_step"] == 5
    assert metrics["tokens_per_second"] * metrics["train_seconds"] == pytest.approx(5 * 3 * 4 * 16)
    rows = run_artifacts.history(run)
    assert [row["step"] for row in rows if row["val_loss"]] == ["2", "4", "5"]
    assert metrics["final_val_loss"] == float(rows[-1]["val_loss"])


@pytest.mark.parametrize("override", ["trainer.accelerator=abacus", "optimizer.lr=-1.0", "~callbacks.missing"])
def test_a_user_error_is_one_line_and_writes_nothing(run_cli, tiny, tmp_path: Path, override):
    outcome = run_cli("train", *tiny, override)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("train.py: ")
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_batch_size_not_divisible_by_the_devices_is_a_user_error(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "trainer.devices=2", "data.batch_size=3")
    assert outcome.code == 2
    assert "data.batch_size=3" in outcome.err
    assert not list(tmp_path.iterdir())


def test_an_exception_is_recorded_in_the_status(run_cli, tiny, tmp_path: Path):
    failure = ["+callbacks.fail._target_=tests.training.fault_injection.RaiseAfterStep", "+callbacks.fail.step=12"]
    with pytest.raises(RuntimeError, match="a part is broken"):
        run_cli("train", *tiny, *failure, "hydra.run.dir=run")
    status = run_artifacts.status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("failed", 12)
    assert status["reason"] == "RuntimeError: a part is broken"
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert run_artifacts.checkpoint(tmp_path / "run")["global_step"] == 10


def test_on_a_full_disk_the_run_fails_and_its_last_checkpoint_remains(run_cli, tiny, tmp_path: Path, monkeypatch):
    remaining = [2]  # checkpoints that fit on the disk

    @contextlib.contextmanager
    def full(path: Path):
        remaining[0] -= 1
        with atomic_write(path) as file:
            yield file
            if remaining[0] < 0:
                raise OSError(28, "No space left on device")

    monkeypatch.setattr("chargpt.checkpoint.torch_file.atomic_write", full)
    overrides = ["trainer.val_check_interval=5", "callbacks.samples.max_new_tokens=0", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *overrides)
    assert outcome.code == 1
    assert re.fullmatch(r"train.py: .*No space left on device.*resume=", outcome.err.splitlines()[-1])
    assert "Traceback" not in outcome.err
    run = tmp_path / "run"
    assert run_artifacts.status(run)["state"] == "failed"
    assert "No space left on device" in run_artifacts.status(run)["reason"]
    assert run_artifacts.checkpoint(run)["global_step"] == 10
    assert {p.name for p in (run / "checkpoints").glob("*.ckpt")} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    monkeypatch.undo()
    assert run_cli("train", "resume=run", "callbacks.samples.max_new_tokens=0").code == 0
    assert run_artifacts.status(run)["state"] == "finished"
