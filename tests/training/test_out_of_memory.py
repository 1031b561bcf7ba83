"""Out of memory: the message has one line, with the required memory and settings that require less."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from chargpt.config.instantiate import instantiate
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.out_of_memory import describe, describe_gpu, estimate, is_out_of_memory, smallest_split
from tests.conftest import REPO


def module() -> LanguageModeling:
    config = yaml.safe_load((REPO / "conf" / "model" / "bigram.yaml").read_text())
    config.pop("defaults", None)
    model = instantiate(config, "model", vocab_size=65)
    return LanguageModeling(model, lambda model: torch.optim.SGD(model.parameters()), lambda *_: 1.0, seed=0)


@pytest.mark.parametrize(
    ("batch", "multiple", "parts"), [(64, 1, 2), (9, 1, 3), (12, 4, 3), (4, 4, 0), (1, 1, 0), (7, 1, 7)]
)
def test_a_batch_is_split_into_the_fewest_micro_batches_that_divide_evenly(batch, multiple, parts):
    assert smallest_split(batch, multiple) == parts
    assert not parts or (batch % parts, batch // parts % multiple) == (0, 0)


def test_only_out_of_memory_errors_are_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_estimate_is_the_parameters_plus_a_term_proportional_to_the_batch():
    bigram = module()
    parameters = 16 * sum(p.numel() for p in bigram.parameters())
    one, eight = estimate(bigram, 1, 32), estimate(bigram, 8, 32)
    assert one > parameters
    assert eight - parameters == 8 * (one - parameters)


def test_the_message_suggests_micro_batches_or_a_smaller_model():
    assert "data.batch_size=32 trainer.accumulate_grad_batches=2" in describe(module(), 64, 16, 1, 1)
    assert "data.batch_size=32 trainer.accumulate_grad_batches=6" in describe(module(), 64, 16, 1, 3)
    assert "smaller model.block_size" in describe(module(), 1, 16, 1, 1)


def test_too_large_a_batch_on_a_cpu_is_a_user_error_before_anything_is_written(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "data.batch_size=1000000000", "hydra.run.dir=run")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "out of memory: 1000000000 blocks of 16 tokens" in outcome.err
    assert "GiB available" in outcome.err
    assert not list(tmp_path.iterdir())


def test_the_suggested_settings_fit_into_memory(run_cli, tiny, monkeypatch):
    """Half the batch would not fit, and would be refused next."""
    monkeypatch.setattr("chargpt.training.out_of_memory.available_memory", lambda: 50 * 2**20)
    large = [*tiny, "trainer.max_steps=1", "trainer.val_check_interval=1", "callbacks.samples.max_new_tokens=0"]
    refused = run_cli("train", *large, "data.batch_size=8192")
    assert (refused.code, "out of memory" in refused.err) == (2, True)
    suggested = re.findall(r"(?:data.batch_size|trainer.accumulate_grad_batches)=\d+", refused.err)
    assert len(suggested) == 2
    assert int(suggested[0].partition("=")[2]) < 4096
    accepted = run_cli("train", *large, *suggested)
    assert accepted.code == 0, accepted.err


@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_fails_with_one_line_and_useful_advice(tiny, tmp_path: Path):
    """The address space is limited."""
    limit = 6 * 2**30

    def run(*overrides: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(REPO / "train.py"), *tiny, "trainer.max_steps=1", *overrides],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )

    big = ["model.n_embd=256", "model.block_size=512", "model.n_layer=3", "data.batch_size=256"]
    done = run(*big, "hydra.run.dir=run")
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("train.py: out of memory: 256 blocks of 512 tokens in one pass, which need about ")
    assert "Traceback" not in done.stderr
    assert "data.batch_size=128 trainer.accumulate_grad_batches=2" in line
    small = run(*big, "data.batch_size=4", "trainer.accumulate_grad_batches=2", "hydra.run.dir=small")
    assert small.returncode == 0, small.stderr


GPU_ERROR = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is "
    "free. Including non-PyTorch memory, this process has 78.08 GiB memory in use."
)


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (GPU_ERROR, "The GPU had allocated 76.0 GiB of 79.11 GiB, and 2.50 GiB more were requested."),
        ("CUDA error: out of memory", "The GPU had allocated 76.0 GiB."),
    ],
)
def test_on_a_gpu_the_message_reports_the_allocators_numbers(monkeypatch, text, usage):
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {gpu: 76 * 2**30}[device])
    line = describe_gpu(torch.OutOfMemoryError(text), gpu, 1, 64, 256, devices=1, passes=1)
    assert line.startswith(f"out of memory: 64 blocks of 256 tokens in one pass. {usage} ")
    assert "data.batch_size=32 trainer.accumulate_grad_batches=2" in line
    assert "\n" not in line
