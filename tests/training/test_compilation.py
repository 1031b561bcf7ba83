"""torch.compile: when it is thought to pay, what it is refused for, and that it changes nothing but the speed."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from chargpt.training import compilation
from chargpt.training.compilation import is_worthwhile, why_unavailable
from tests.conftest import process
from tests.training import run_artifacts

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.mark.parametrize(
    ("device", "steps", "seconds", "wanted"),
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
def test_auto_compiles_long_runs_on_a_gpu(device, steps, seconds, wanted):
    assert is_worthwhile(device, steps, seconds) is wanted


@pytest.mark.parametrize(("setting", "named"), [("maybe", "reduce-overhead"), ("cudagraphs", "one CUDA GPU")])
def test_a_setting_that_cannot_be_is_refused(run_cli, tiny, tmp_path: Path, setting, named):
    outcome = run_cli("train", *tiny, f"trainer.compile={setting}")
    assert outcome.code == 2
    assert f"trainer.compile={setting}" in outcome.err
    assert named in outcome.err
    assert list(tmp_path.iterdir()) == []


USUAL = "clang++" if sys.platform == "darwin" else "g++"


@pytest.mark.parametrize(
    ("there", "named", "can"),
    [(USUAL, None, True), ("other", None, False), ("other", "other", True), (USUAL, "other", False)],
)
def test_a_cpu_needs_the_compiler_that_the_user_names_or_the_usual_one(monkeypatch, tmp_path, there, named, can):
    (tmp_path / there).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", named) if named else monkeypatch.delenv("CXX", raising=False)
    assert (why_unavailable("cpu", "inductor") is None) == can
    assert why_unavailable("cpu", "cudagraphs") is None


def test_it_is_the_compiler_that_inductor_takes():
    assert torch._inductor.config.cpp.cxx[-1] == os.environ.get("CXX", USUAL)


@pytest.mark.parametrize(
    ("there", "capability", "can"),
    [(True, (7, 0), True), (True, (9, 0), True), (True, (6, 1), False), (False, (9, 0), False)],
)
def test_a_gpu_needs_triton_and_not_to_be_too_old_for_it(monkeypatch, there, capability, can):
    monkeypatch.setattr(compilation, "find_spec", {"triton": there or None}.get)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert (why_unavailable("cuda", "inductor") is None) == can
    assert why_unavailable("cuda", "cudagraphs") is None


@pytest.mark.slow
def test_without_a_compiler_it_is_refused_and_nothing_is_left(tiny, tmp_path: Path):
    outcome = process(tmp_path, "train", *tiny, "trainer.compile=true", CXX="no-such-compiler", PATH="")
    assert outcome.code == 2
    assert "C++ compiler" in outcome.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_is_the_same_run_and_its_compiling_is_no_training_time(tiny, tmp_path: Path):
    words = [*tiny, "model.dropout=0", "model.n_layer=1", "trainer.devices=2"]
    for choice in ("true", "false"):
        outcome = process(
            tmp_path, "train", *words, f"trainer.compile={choice}", f"hydra.run.dir=compile_{choice}", timeout=300
        )
        assert outcome.code == 0, outcome.err
    fast, plain = (run_artifacts.metrics(tmp_path / f"compile_{choice}") for choice in ("true", "false"))
    assert fast["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)
    assert fast["compilation_seconds"] > 1 > plain["compilation_seconds"] == 0
    assert fast["train_seconds"] < fast["compilation_seconds"]


@pytest.mark.slow
@needs_compiler
def test_compiled_blocks_learn_what_plain_ones_do_and_are_compiled_once_for_all_layers(tiny, tmp_path: Path):
    words = [*tiny, "model.dropout=0", "model.n_layer=3", "model/value_residual=embedding"]
    words += ["+callbacks.count._target_=tests.training.fault_injection.CountCompiled"]
    for name, choice in {"blocks": "blocks", "plain": "false"}.items():
        outcome = process(tmp_path, "train", *words, f"trainer.compile={choice}", f"hydra.run.dir={name}", timeout=300)
        assert outcome.code == 0, outcome.err
    mine, theirs = (run_artifacts.metrics(tmp_path / name) for name in ("blocks", "plain"))
    assert mine["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-4)
    assert (tmp_path / "blocks" / "compiled.txt").read_text() == "1"


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_that_is_cut_off_goes_on_to_the_same_bits(tiny, tmp_path: Path):
    words = [
        *tiny,
        "model.n_layer=1",
        "trainer.compile=true",
        "schedule=constant",
    ]  # which knows nothing of the run's end
    assert process(tmp_path, "train", *words, "hydra.run.dir=whole", timeout=300).code == 0
    cut = [*words, "trainer.max_steps=10", "hydra.run.dir=cut"]
    assert process(tmp_path, "train", *cut, timeout=300).code == 0
    again = process(tmp_path, "train", "resume=cut", "trainer.max_steps=20", timeout=300)
    assert again.code == 0, again.err
    whole, resumed = (run_artifacts.checkpoint(tmp_path / run)["state_dict"] for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
