"""What the tests of training share: one thread a process and short samples, so that two cores are enough."""

import functools
import os

import pytest
import torch

from chargpt.inference.pretrained import PretrainedModel

os.environ["OMP_NUM_THREADS"] = "1"  # the processes that the tests start take it over


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch):
    """A run in this process leaves a sample of 20 characters; that of `finished` is whole."""
    generate = PretrainedModel.generate

    @functools.wraps(generate)
    def short(self, *args, max_new_tokens, **settings):
        return generate(self, *args, max_new_tokens=min(20, max_new_tokens), **settings)

    monkeypatch.setattr(PretrainedModel, "generate", short)
