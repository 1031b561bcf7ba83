"""Tests of the random streams: equal for equal counters, unrelated otherwise, and no memory growth per step."""

import torch

from chargpt.utils.seeding import fold_in, generator, seed_device


def test_seeds_are_a_function_of_seed_and_counters_and_all_different():
    assert fold_in(1, 2, 3) == fold_in(1, 2, 3)
    seeds = {fold_in(seed, stream, k) for seed in range(20) for stream in range(4) for k in range(20)}
    assert len(seeds) == 20 * 4 * 20 and all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_the_same_stream_draw_the_same_numbers():
    draws = [torch.rand(5, generator=generator(7, 1, k)) for k in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_seeding_the_cpu_equals_manual_seed():
    torch.manual_seed(fold_in(5))
    expected = torch.rand(10)
    seed_device(fold_in(5), torch.device("cpu"))
    assert torch.equal(torch.rand(10), expected)


def test_seeding_an_apple_gpu_seeds_its_generator_and_that_of_the_cpu(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    seed_device(fold_in(5), torch.device("mps"))
    assert seeds == [fold_in(5)]
    drawn = torch.rand(10)
    torch.manual_seed(fold_in(5))
    assert torch.equal(torch.rand(10), drawn)


def test_seeding_in_each_step_queues_no_calls():
    queues = [module._queued_calls for module in (torch.cuda, torch.xpu, torch.mtia)]
    lengths = [len(queue) for queue in queues]
    for step in range(100):
        seed_device(step, torch.device("cpu"))
    assert [len(queue) for queue in queues] == lengths
