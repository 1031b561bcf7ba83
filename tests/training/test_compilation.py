"""torch.compile: when `auto` compiles, what is refused, and that compilation changes only the speed."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from chargpt.training import compilation
from chargpt.training.compilation import is_worthwhile, unavailable_reason
from tests.conftest import process
from tests.training import run_artifacts

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.mark.parametrize(
    ("device", "steps", "seconds", "expected"),
    [
        ("cpu", 10**6, None, False),
        ("mps", 10**6, None, False),
        ("cuda", 100, None, False),
        ("cuda", 5000, None, False),
        ("cuda", 20000, None, True),
        ("cuda", -1, 60.0, False),
        ("cuda", -1, 600.0, True),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(device, steps, seconds, expected):
    assert is_worthwhile(device, steps, seconds) is expected


@pytest.mark.parametrize(("setting", "message"), [("maybe", "reduce-overhead"), ("cudagraphs", "one CUDA GPU")])
def test_an_invalid_setting_is_a_user_error(run_cli, tiny, tmp_path: Path, setting, message):
    outcome = run_cli("train", *tiny, f"trainer.compile={setting}")
    assert outcome.code == 2
    assert f"trainer.compile={setting}" in outcome.err
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


DEFAULT = "clang++" if sys.platform == "darwin" else "g++"


@pytest.mark.parametrize(
    ("installed", "cxx", "available"),
    [(DEFAULT, None, True), ("other", None, False), ("other", "other", True), (DEFAULT, "other", False)],
)
def test_a_cpu_requires_the_compiler_of_cxx_or_the_default_one(monkeypatch, tmp_path, installed, cxx, available):
    (tmp_path / installed).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", cxx) if cxx else monkeypatch.delenv("CXX", raising=False)
    assert (unavailable_reason("cpu", "inductor") is None) == available
    assert unavailable_reason("cpu", "cudagraphs") is None


def test_inductor_uses_the_compiler_of_cxx_or_the_default_one():
    assert torch._inductor.config.cpp.cxx[-1] == os.environ.get("CXX", DEFAULT)


@pytest.mark.parametrize(
    ("installed", "capability", "available"),
    [(True, (7, 0), True), (True, (9, 0), True), (True, (6, 1), False), (False, (9, 0), False)],
)
def test_a_gpu_requires_triton_and_a_supported_compute_capability(monkeypatch, installed, capability, available):
    monkeypatch.setattr(compilation, "find_spec", {"triton": installed or None}.get)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert (unavailable_reason("cuda", "inductor") is None) == available
    assert unavailable_reason("cuda", "cudagraphs") is None


@pytest.mark.slow
def test_compilation_without_a_compiler_is_a_user_error_and_writes_nothing(tiny, tmp_path: Path):
    outcome = process(tmp_path, "train", *tiny, "trainer.compile=true", CXX="no-such-compiler", PATH="")
    assert outcome.code == 2
    assert "C++ compiler" in outcome.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_has_the_same_loss_and_compilation_is_not_training_time(tiny, tmp_path: Path):
    overrides = [*tiny, "model.dropout=0", "model.n_layer=1", "trainer.devices=2"]
    for setting in ("true", "false"):
        outcome = process(
            tmp_path, "train", *overrides, f"trainer.compile={setting}", f"hydra.run.dir=compile_{setting}", timeout=300
        )
        assert outcome.code == 0, outcome.err
    compiled, eager = (run_artifacts.metrics(tmp_path / f"compile_{setting}") for setting in ("true", "false"))
    assert compiled["val_loss"] == pytest.approx(eager["val_loss"], abs=1e-4)
    assert compiled["compilation_seconds"] > 1 > eager["compilation_seconds"] == 0
    assert compiled["train_seconds"] < compiled["compilation_seconds"]


@pytest.mark.slow
@needs_compiler
def test_compiled_blocks_have_the_same_loss_and_are_compiled_once_for_all_layers(tiny, tmp_path: Path):
    overrides = [*tiny, "model.dropout=0", "model.n_layer=3", "model/value_residual=embedding"]
    overrides += ["+callbacks.count._target_=tests.training.fault_injection.CountCompiled"]
    for name, setting in {"blocks": "blocks", "eager": "false"}.items():
        outcome = process(
            tmp_path, "train", *overrides, f"trainer.compile={setting}", f"hydra.run.dir={name}", timeout=300
        )
        assert outcome.code == 0, outcome.err
    compiled, eager = (run_artifacts.metrics(tmp_path / name) for name in ("blocks", "eager"))
    assert compiled["val_loss"] == pytest.approx(eager["val_loss"], abs=1e-4)
    assert (tmp_path / "blocks" / "compiled.txt").read_text() == "1"


@pytest.mark.slow
@needs_compiler
def test_a_resumed_compiled_run_is_bit_identical_to_an_uninterrupted_one(tiny, tmp_path: Path):
    # The constant schedule does not depend on max_steps.
    overrides = [*tiny, "model.n_layer=1", "trainer.compile=true", "schedule=constant"]
    assert process(tmp_path, "train", *overrides, "hydra.run.dir=uninterrupted", timeout=300).code == 0
    half = [*overrides, "trainer.max_steps=10", "hydra.run.dir=resumed"]
    assert process(tmp_path, "train", *half, timeout=300).code == 0
    outcome = process(tmp_path, "train", "resume=resumed", "trainer.max_steps=20", timeout=300)
    assert outcome.code == 0, outcome.err
    expected, resumed = (run_artifacts.checkpoint(tmp_path / run)["state_dict"] for run in ("uninterrupted", "resumed"))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
