"""Sweeps as real processes: on two devices a job, killed, begun twice, begun again."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import process
from tests.sweeps.processes import Sweep, finished, losses, steps_done, touched
from tests.training import run_artifacts

pytestmark = pytest.mark.slow

DIE = "+callbacks.die._target_=tests.training.fault_injection.FailRank"


@pytest.fixture
def words(tiny) -> list[str]:
    """A run of a second, but for its depth."""
    return [word for word in tiny if not word.startswith("model.n_layer")] + ["callbacks.samples.max_new_tokens=0"]


def test_a_sweep_runs_every_combination_to_its_end(tiny, tmp_path):
    some = [word for word in tiny if not word.startswith(("model.n_layer", "model.dropout"))]
    outcome = process(tmp_path, "train", "-m", "model.n_layer=1,2", "model.dropout=0,0.1", *some)
    assert outcome.code == 0, outcome.err
    runs = finished(tmp_path)
    configs = [OmegaConf.load(run / ".hydra" / "config.yaml").model for run in runs.values()]
    assert sorted((c.n_layer, c.dropout) for c in configs) == [(1, 0), (1, 0.1), (2, 0), (2, 0.1)]
    assert {run_artifacts.status(run)["state"] for run in runs.values()} == {"finished"}
    assert "n_layer" in outcome.out and "dropout" in outcome.out, "it ends in a table of what varies"


def test_two_devices_a_job_are_two_processes_and_one_directory_and_what_a_single_run_gives(words, tmp_path):
    two = ["trainer.devices=2", "trainer.accelerator=cpu"]
    sweep = Sweep(tmp_path, "model.n_layer=1,2", *words, *two)
    most = 0
    while sweep.process.poll() is None:
        most = max(most, len(sweep.alive()))
        time.sleep(0.1)
    assert sweep.wait() == 0, sweep.output
    assert most <= 1 + 1 + 2, "the sweep, who started the ranks, and two ranks"
    assert not sweep.alive()
    runs = finished(tmp_path)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"gpt_nano"}
    below = {path.name for path in (tmp_path / "outputs" / "gpt_nano").iterdir()}
    assert below == {*runs, "multirun.yaml", "sweep.csv", "sweep.png"}
    assert [run_artifacts.metrics(run)["devices"] for run in runs.values()] == [2, 2]
    for name, run in runs.items():
        depth = OmegaConf.load(run / ".hydra" / "config.yaml").model.n_layer
        alone = process(tmp_path, "train", f"model.n_layer={depth}", *words, *two, f"hydra.run.dir=one{depth}")
        assert alone.code == 0, alone.err
        single = run_artifacts.metrics(tmp_path / f"one{depth}")["final_val_loss"]
        assert losses(tmp_path / "outputs")[name] == pytest.approx(single, abs=1e-6)


@pytest.mark.parametrize(("rank", "how"), [(1, "raise"), (1, "SIGKILL"), (0, "SIGKILL")])
def test_a_rank_that_dies_ends_its_job_and_not_the_sweep(words, tmp_path, rank, how):
    die = [DIE, f"+callbacks.die.rank={rank}", "+callbacks.die.step=7", f"+callbacks.die.how={how}"]
    die += ["+callbacks.die.value=${model.n_layer}", "+callbacks.die.where=2"]
    sweep = Sweep(tmp_path, "model.n_layer=1,2,3", *words, "trainer.devices=2", *die)
    assert sweep.wait() == 1, sweep.output
    assert not sweep.alive()
    states = {}
    for file in (tmp_path / "outputs").rglob("status.json"):
        depth = OmegaConf.load(file.parent / ".hydra" / "config.yaml").model.n_layer
        states[depth] = run_artifacts.status(file.parent)
    assert {depth: status["state"] for depth, status in states.items()} == {
        1: "finished",
        2: "failed",
        3: "finished",
    }
    reason = "RuntimeError: a rank is broken" if how == "raise" else "was killed by SIGKILL"
    assert states[2]["reason"].startswith(f"rank {rank} ") and reason in states[2]["reason"]
    table = sweep.output[sweep.output.rindex("val loss") :]
    assert table.count("finished") == 2 and reason in table


def test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_been(words, tmp_path):
    more = ["trainer.max_steps=150", "trainer.val_check_interval=25", "trainer.log_every_n_steps=1"]
    over = ["model.n_layer=1,2", "seed=1,2"]
    (tmp_path / "undisturbed").mkdir()
    assert Sweep(tmp_path / "undisturbed", *over, *words, *more).wait() == 0
    place = tmp_path / "killed"
    place.mkdir()
    draw = random.Random(4711)
    done: dict[str, dict[str, int]] = {}
    kills = sorted(draw.sample(range(20, 4 * 150 - 20), 4))
    for step in kills:
        sweep = Sweep(place, *over, *words, *more)
        while steps_done(place) < step and sweep.process.poll() is None:
            time.sleep(0.005)
        assert sweep.process.poll() is None, sweep.output
        sweep.kill()
        for name, run in finished(place).items():
            done.setdefault(name, touched(run))
    last = Sweep(place, *over, *words, *more)
    assert last.wait() == 0, last.output
    runs = finished(place)
    assert len(runs) == 4
    assert done, "some run was finished before the last kill"
    for name, before in done.items():
        assert touched(runs[name]) == before
        assert f"{name} is finished already" in last.output
    assert losses(place) == losses(tmp_path / "undisturbed")


def test_the_same_sweep_from_two_shells_runs_each_job_once(words, tmp_path):
    more = ["model.n_layer=1,2", "trainer.max_steps=40", "trainer.log_every_n_steps=1"]
    sweeps = [Sweep(tmp_path, *words, *more) for _ in range(2)]
    assert [sweep.wait() for sweep in sweeps] == [0, 0], "\n".join(sweep.output for sweep in sweeps)
    runs = finished(tmp_path)
    assert len(runs) == 2
    for run in runs.values():
        assert [row["step"] for row in run_artifacts.history(run)] == [str(step) for step in range(1, 41)]
        assert (run / "train.log").read_text().count("parameters") == 1, "it began once"
    said = "".join(sweep.output for sweep in sweeps)
    assert said.count("is finished already") == 2


def test_the_same_sweep_with_a_later_end_goes_on_and_another_run_in_its_place_is_refused(words, tmp_path):
    over = ["model.n_layer=1,2"]
    assert process(tmp_path, "train", "-m", *over, *words).code == 0
    further = process(tmp_path, "train", "-m", *over, *words, "trainer.max_steps=30")
    assert further.code == 0, further.err
    runs = finished(tmp_path)
    assert {run_artifacts.metrics(run)["steps"] for run in runs.values()} == {30}
    assert len(runs) == 2
    for run in runs.values():
        config = run / ".hydra" / "config.yaml"
        config.write_text(config.read_text().replace("n_embd: 16", "n_embd: 32"))
    other = process(tmp_path, "train", "-m", *over, *words, "trainer.max_steps=30")
    assert other.code == 2
    assert other.err.count("holds another run: model.n_embd=32 there and 16 here") == 2


def test_a_job_that_fails_does_not_take_the_sweep_with_it(tiny, tmp_path):
    some = [word for word in tiny if not word.startswith("model.n_head")]
    outcome = process(tmp_path, "train", "-m", *some, "model.n_head=3,2")
    assert outcome.code == 1
    assert "model.n_head=3 does not divide" in outcome.err
    assert "Traceback" not in outcome.err
    (run,) = finished(tmp_path).values()
    assert OmegaConf.load(run / ".hydra" / "config.yaml").model.n_head == 2
    left = {path.name for path in run.parent.iterdir()}
    assert left == {run.name, "multirun.yaml", "sweep.csv", "sweep.png"}


def test_a_sweep_in_which_every_job_is_a_mistake_is_one_and_leaves_nothing(tiny, tmp_path):
    some = [word for word in tiny if not word.startswith("model.n_")]
    outcome = process(tmp_path, "train", "-m", *some, "model.n_embd=16", "model.n_layer=1,2", "model.n_head=3")
    assert outcome.code == 2, outcome.err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_ones_own_configs_is_swept_like_ours(tiny, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tall.yaml").write_text("defaults: [gpt_nano, _self_]\nn_layer: 3\n")
    some = [word for word in tiny if not word.startswith(("model.n_layer", "model="))]
    words = ["--config-dir", str(tmp_path / "mine"), "model=tall,gpt_nano", "recipe=gpt_nano"]
    outcome = process(tmp_path, "train", "-m", *words, *some)
    assert outcome.code == 0, outcome.err
    depths = {OmegaConf.load(run / ".hydra" / "config.yaml").model.n_layer for run in finished(tmp_path).values()}
    assert depths == {3, 4}


def test_a_refused_job_is_told_with_its_reason_after_the_table(words, tmp_path):
    some = [word for word in words if not word.startswith("model.n_head")]
    outcome = process(tmp_path, "train", "-m", "model.n_layer=1", *some, "model.n_head=3,2")
    assert outcome.code == 1
    *_, refused, count = outcome.err.splitlines()
    assert refused.startswith("refused: ") and "model.n_head=3 does not divide model.n_embd=16" in refused
    assert count == "train.py: 1 of 2 jobs did not end well"


def test_the_table_of_a_sweep_over_rungs_stands_beside_their_runs(tiny, tmp_path):
    some = [word for word in tiny if not word.startswith("model.")]
    outcome = process(tmp_path, "train", "-m", "+lecture=bigram,head", *some)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "outputs" / "lecture" / "sweep.csv").exists()
    assert {run.parent.name for run in finished(tmp_path).values()} == {"lecture"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_sweep_alone_ends_it_however_early(words, tmp_path, number):
    sweep = Sweep(tmp_path, "model.n_layer=1,2", *words, "trainer.max_steps=100000")
    while len(sweep.alive()) < 2:
        time.sleep(0.002)
    time.sleep(1.0)  # the job imports what it needs
    sweep.process.send_signal(number)
    assert sweep.wait(60) == 3, sweep.output
    assert not sweep.alive()


def test_ctrl_c_ends_the_sweep_with_code_3_and_the_same_command_goes_on(words, tmp_path):
    more = ["model.n_layer=1,2", "trainer.max_steps=4000", "trainer.log_every_n_steps=1"]
    sweep = Sweep(tmp_path, *words, *more)
    while steps_done(tmp_path) < 20:
        assert sweep.process.poll() is None, sweep.output
        time.sleep(0.01)
    os.killpg(sweep.process.pid, signal.SIGINT)  # as the terminal does
    assert sweep.wait() == 3, sweep.output
    assert "The same command goes on where it stopped" in sweep.output
    assert "Traceback" not in sweep.output
    (run,) = (file.parent for file in Path(tmp_path).rglob("status.json"))
    assert run_artifacts.status(run)["state"] == "interrupted"
    step = run_artifacts.checkpoint(run)["global_step"]
    again = process(tmp_path, "train", "-m", *words, "model.n_layer=1", f"trainer.max_steps={step + 5}")
    assert again.code == 2 and "planned for 4000" in again.err
