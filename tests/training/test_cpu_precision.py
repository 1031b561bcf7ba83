"""`trainer.precision=fastest` on a CPU: the measurement, its cache, and runs that use its result again.

A file of the cache that names other types stands for a measurement with another result.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from chargpt.model.kernels.cpu_dtypes import (
    BFLOAT16,
    BFLOAT16_BLOCKS,
    FLOAT32,
    CPUDtypes,
    get_cpu_dtypes,
    set_cpu_dtypes,
)
from chargpt.training import cpu_precision as module
from chargpt.training.cpu_precision import as_plain, fastest_dtypes, measure, select_cpu_dtypes
from chargpt.utils import measurements
from tests.conftest import process
from tests.training import run_artifacts
from tests.training.fault_injection import FakeClock

FAST = CPUDtypes(BFLOAT16, BFLOAT16_BLOCKS, BFLOAT16)
FASTEST = {"precision": "fastest", "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> Path:
    """An empty cache folder, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(measurements, "user_cache_dir", lambda name: str(folder / name))
    yield folder / "chargpt"
    set_cpu_dtypes(None)


@pytest.fixture
def cached(cache):
    """`cached(dtypes)` writes the result of a measurement."""

    def write(dtypes: CPUDtypes) -> None:
        cache.mkdir(exist_ok=True)
        content = {measurements.processor(): {module.MEASUREMENT: asdict(dtypes)}}
        (cache / measurements.FILE).write_text(json.dumps(content))

    return write


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(module, "measure", lambda: pytest.fail("measured again"))


# The measurement


@pytest.fixture
def seconds(monkeypatch):
    """`seconds(linear=...)` sets the times of the operations as fractions of those in float32. Returns their calls."""

    def replace(linear: float, blocks: float = 0.5, fused: float = 2.0, orthogonalization: float = 0.5) -> list:
        times = {("linear", BFLOAT16): linear, ("orthogonalization", BFLOAT16): orthogonalization}
        times |= {("attention", BFLOAT16): fused, ("attention", BFLOAT16_BLOCKS): blocks}
        calls = []

        def work(operation: str):
            def advance(option: str) -> None:
                calls.append((operation, option))
                FakeClock.now += times.get((operation, option), 1.0)

            return lambda: advance

        monkeypatch.setattr(module, "WORK", {operation: work(operation) for operation in module.WORK})
        monkeypatch.setattr(measurements.time, "perf_counter", FakeClock.perf_counter)
        return calls

    return replace


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        (dict(linear=0.5), FAST),
        (dict(linear=0.5, blocks=0.8, fused=0.4), CPUDtypes(BFLOAT16, BFLOAT16, BFLOAT16)),
        (dict(linear=0.5, blocks=1.2), CPUDtypes(BFLOAT16, FLOAT32, BFLOAT16)),
        (dict(linear=0.5, blocks=0.95), CPUDtypes(BFLOAT16, FLOAT32, BFLOAT16)),
        (dict(linear=0.5, orthogonalization=0.95), CPUDtypes(BFLOAT16, BFLOAT16_BLOCKS, FLOAT32)),
        (dict(linear=0.95), CPUDtypes()),
        (dict(linear=40.0), CPUDtypes()),
    ],
)
def test_each_operation_has_the_type_that_is_clearly_fastest(seconds, fractions, expected):
    seconds(**fractions)
    assert measure() == expected


def test_emulated_products_are_measured_once_and_nothing_else(seconds):
    calls = seconds(linear=40.0)
    measure()
    assert calls.count(("linear", BFLOAT16)) == 1
    assert set(calls) == {("linear", BFLOAT16), ("linear", FLOAT32)}


def test_a_measurement_changes_neither_the_types_nor_the_threads_nor_random_numbers():
    set_cpu_dtypes(FAST)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert isinstance(measure(), CPUDtypes)
    assert (get_cpu_dtypes(), torch.get_num_threads()) == (FAST, threads)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("known", [{"linear": "float8"}, [1], None, asdict(FAST) | {"more": 1}])
def test_types_in_the_cache_that_are_invalid_are_measured_again(monkeypatch, cache, known):
    cache.mkdir()
    (cache / measurements.FILE).write_text(json.dumps({measurements.processor(): {module.MEASUREMENT: known}}))
    monkeypatch.setattr(module, "measure", lambda: FAST)
    assert fastest_dtypes() == FAST
    monkeypatch.setattr(module, "measure", CPUDtypes)
    assert fastest_dtypes() == FAST


# The types of a run


def test_only_the_fastest_precision_on_a_cpu_is_measured(unmeasured):
    for precision in ("auto", "32-true", "bf16-mixed"):
        set_cpu_dtypes(FAST)
        select_cpu_dtypes(FASTEST | {"precision": precision}, as_plain(FAST))
        assert get_cpu_dtypes() is None
    select_cpu_dtypes(FASTEST | {"accelerator": "gpu"}, as_plain(FAST))
    assert get_cpu_dtypes() is None


def test_a_run_continues_with_its_types(unmeasured):
    for dtypes in (FAST, CPUDtypes()):
        select_cpu_dtypes(FASTEST, as_plain(dtypes))
        assert get_cpu_dtypes() == dtypes


def test_on_another_processor_the_types_are_measured_again_and_a_difference_is_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    saved = as_plain(FAST) | {"processor": "another"}
    for dtypes in (FAST, CPUDtypes()):
        monkeypatch.setattr(module, "fastest_dtypes", lambda d=dtypes: d)
        select_cpu_dtypes(FASTEST, saved)
        assert get_cpu_dtypes() == dtypes
        assert ("another processor" in caplog.text) == (dtypes != FAST)


@pytest.mark.parametrize("saved", [None, 3, "bfloat16", {}, {"linear": ["bfloat16"]}, {"linear": "float8"}])
def test_invalid_saved_types_are_measured_again(monkeypatch, saved):
    monkeypatch.setattr(module, "measure", lambda: FAST)
    select_cpu_dtypes(FASTEST, saved)
    assert get_cpu_dtypes() == FAST


# Runs


@pytest.fixture
def modern(tiny) -> list[str]:
    """A tiny gpt_modern, whose optimizer is Muon."""
    return [*(override for override in tiny if override != "model=gpt_nano"), "model=gpt_modern"]


RUN = ["trainer.precision=fastest", "callbacks.samples.max_new_tokens=0"]
SIGTERM = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", "+callbacks.signal.name=SIGTERM"]
SIGTERM += ["+callbacks.signal.batch=13"]


def losses(run: Path) -> list[tuple[str, str]]:
    return [(row["train_loss"], row["val_loss"]) for row in run_artifacts.history(run)]


def test_the_types_are_recorded_and_used_again_whatever_a_later_measurement_gives(run_cli, modern, cached, tmp_path):
    cached(FAST)
    assert run_cli("train", *modern, *RUN, "hydra.run.dir=whole").code == 0
    assert run_cli("train", *modern, *RUN, *SIGTERM, "hydra.run.dir=cut").code == 3
    saved = run_artifacts.checkpoint(tmp_path / "cut")["chargpt"]["cpu_dtypes"]
    assert saved == run_artifacts.provenance(tmp_path / "cut")["cpu_dtypes"] == as_plain(FAST)
    cached(CPUDtypes())
    assert run_cli("train", "resume=cut").code == 0
    assert run_cli("train", "rerun=whole", "hydra.run.dir=again").code == 0
    for run in ("cut", "again"):
        assert losses(tmp_path / run) == losses(tmp_path / "whole")
        weights = (run_artifacts.training_state(tmp_path / name) for name in (run, "whole"))
        assert not run_artifacts.differences(*weights)
    assert run_cli("train", *modern, *RUN, "hydra.run.dir=float32").code == 0
    assert losses(tmp_path / "float32") != losses(tmp_path / "whole")


def test_without_fast_bfloat16_a_run_is_that_in_float32(run_cli, modern, cached, tmp_path):
    cached(CPUDtypes())
    for name, precision in (("fastest", "fastest"), ("float32", "32-true")):
        settings = [f"trainer.precision={precision}", "callbacks.samples.max_new_tokens=0", f"hydra.run.dir={name}"]
        assert run_cli("train", *modern, *settings).code == 0
    assert losses(tmp_path / "fastest") == losses(tmp_path / "float32")
    assert "cpu_dtypes" not in run_artifacts.provenance(tmp_path / "float32")


@pytest.mark.slow
def test_all_ranks_compute_in_the_types_of_rank_0(modern, cached, tmp_path):
    """Rank 1 has chosen others, as on another machine."""
    cached(FAST)
    two = [*modern, *RUN, "trainer.devices=2", "model.dropout=0.0"]
    other = ["+callbacks.other._target_=tests.training.fault_injection.OtherCPUDtypes", "+callbacks.other.rank=1"]
    for name, callback in (("equal", []), ("different", other)):
        outcome = process(tmp_path, "train", *two, *callback, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    assert losses(tmp_path / "different") == losses(tmp_path / "equal")
