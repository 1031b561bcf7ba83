"""Fixtures of the training tests: one thread per process, and short samples."""

import functools
import os

import pytest
import torch

from chargpt.inference.pretrained import PretrainedModel

os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes that tests start


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch):
    """Limits the sample of a run in this process to 20 characters; `finished` has a full one."""
    generate = PretrainedModel.generate

    @functools.wraps(generate)
    def short(self, *args, max_new_tokens, **settings):
        return generate(self, *args, max_new_tokens=min(20, max_new_tokens), **settings)

    monkeypatch.setattr(PretrainedModel, "generate", short)
