"""Out of memory: one line with what was wanted and what to try, on a machine that has not enough."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chargpt.config.instantiate import instantiate
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.out_of_memory import describe, describe_gpu, estimate, is_out_of_memory, smallest_split
from tests.conftest import REPO


def module(n_layer: int = 2) -> LanguageModeling:
    import yaml

    config = yaml.safe_load((REPO / "conf" / "model" / "bigram.yaml").read_text())
    config.pop("defaults", None)
    model = instantiate(config, "model", vocab_size=65)
    return LanguageModeling(model, lambda model: torch.optim.SGD(model.parameters()), lambda *_: 1.0, seed=0)


@pytest.mark.parametrize(
    ("batch", "multiple", "parts"), [(64, 1, 2), (9, 1, 3), (12, 4, 3), (4, 4, 0), (1, 1, 0), (7, 1, 7)]
)
def test_a_batch_is_cut_into_the_fewest_parts_that_the_devices_can_share(batch, multiple, parts):
    assert smallest_split(batch, multiple) == parts
    assert not parts or (batch % parts, batch // parts % multiple) == (0, 0)


def test_only_want_of_memory_is_taken_for_it():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_estimate_grows_with_the_batch_and_is_more_than_the_parameters():
    bigram = module()
    parameters = 16 * sum(p.numel() for p in bigram.parameters())
    one, eight = estimate(bigram, 1, 32), estimate(bigram, 8, 32)
    assert one > parameters
    assert eight - parameters == 8 * (one - parameters)


def test_a_batch_that_cannot_be_cut_gets_other_advice():
    assert "data.batch_size=32 trainer.accumulate_grad_batches=2" in describe(module(), 64, 16, 1, 1)
    assert "data.batch_size=32 trainer.accumulate_grad_batches=6" in describe(module(), 64, 16, 1, 3)
    assert "smaller model.block_size" in describe(module(), 1, 16, 1, 1)


def test_what_the_machine_has_not_is_told_before_anything_is_written(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "data.batch_size=1000000000", "hydra.run.dir=run")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "out of memory: 1000000000 blocks of 16 tokens" in outcome.err
    assert "to be had on this machine" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_step_without_room_ends_in_one_line_and_the_advice_is_good(tiny, tmp_path: Path):
    """With so much address space and no more."""
    limit = 6 * 2**30

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(REPO / "train.py"), *tiny, "trainer.max_steps=1", *words],
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
    assert line.startswith("train.py: out of memory: 256 blocks of 512 tokens in one pass, which want about ")
    assert "Traceback" not in done.stderr
    assert "data.batch_size=128 trainer.accumulate_grad_batches=2" in line
    small = run(*big, "data.batch_size=4", "trainer.accumulate_grad_batches=2", "hydra.run.dir=small")
    assert small.returncode == 0, small.stderr


GPU_ERROR = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is "
    "free. Including non-PyTorch memory, this process has 78.08 GiB memory in use."
)


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        (GPU_ERROR, "The GPU held 76.0 GiB of 79.11 GiB and was asked for 2.50 GiB more."),
        ("CUDA error: out of memory", "The GPU held 76.0 GiB."),
    ],
)
def test_on_a_gpu_the_figures_are_those_of_its_allocator(monkeypatch, text, figures):
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {gpu: 76 * 2**30}[device])
    line = describe_gpu(torch.OutOfMemoryError(text), gpu, 1, 64, 256, devices=1, passes=1)
    assert line.startswith(f"out of memory: 64 blocks of 256 tokens in one pass. {figures} ")
    assert "data.batch_size=32 trainer.accumulate_grad_batches=2" in line
    assert "\n" not in line
