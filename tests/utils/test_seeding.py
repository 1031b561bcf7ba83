"""Random streams: the same for the same names, unrelated otherwise, and nothing piles up."""

import torch

from chargpt.utils.seeding import fold_in, generator, seed_device


def test_a_stream_is_a_function_of_its_names():
    assert fold_in(1, 2, 3) == fold_in(1, 2, 3)
    seeds = {fold_in(seed, use, k) for seed in range(20) for use in range(4) for k in range(20)}
    assert len(seeds) == 20 * 4 * 20 and all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_stream_draw_the_same():
    draws = [torch.rand(5, generator=generator(7, 1, k)) for k in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_seeding_the_cpu_is_what_manual_seed_does_there():
    torch.manual_seed(fold_in(5))
    expected = torch.rand(10)
    seed_device(fold_in(5), torch.device("cpu"))
    assert torch.equal(torch.rand(10), expected)


def test_seeding_each_step_leaves_nothing_behind():
    waiting = [module._queued_calls for module in (torch.cuda, torch.xpu, torch.mtia)]
    before = [len(calls) for calls in waiting]
    for step in range(100):
        seed_device(step, torch.device("cpu"))
    assert [len(calls) for calls in waiting] == before
