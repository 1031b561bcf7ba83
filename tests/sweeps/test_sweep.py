"""Sweeps as real processes: with two devices per job, killed, started twice, and resumed."""

import csv
import os
import random
import signal
import time
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from chargpt.sweeps.sweep import LECTURE, in_lecture_order
from tests.config.conftest import CONF
from tests.conftest import process
from tests.sweeps.processes import Sweep, finished, losses, modification_times, steps_done
from tests.training import run_artifacts

pytestmark = pytest.mark.slow

FAIL = "+callbacks.fail._target_=tests.training.fault_injection.FailRank"


@pytest.fixture
def overrides(tiny) -> list[str]:
    """The overrides of a tiny run, without its number of layers."""
    kept = [override for override in tiny if not override.startswith("model.n_layer")]
    return [*kept, "callbacks.samples.max_new_tokens=0"]


def test_a_sweep_runs_all_combinations(tiny, tmp_path):
    fixed = [override for override in tiny if not override.startswith(("model.n_layer", "model.dropout"))]
    outcome = process(tmp_path, "train", "-m", "model.n_layer=1,2", "model.dropout=0,0.1", *fixed)
    assert outcome.code == 0, outcome.err
    runs = finished(tmp_path)
    configs = [OmegaConf.load(run / ".hydra" / "config.yaml").model for run in runs.values()]
    assert sorted((c.n_layer, c.dropout) for c in configs) == [(1, 0), (1, 0.1), (2, 0), (2, 0.1)]
    assert {run_artifacts.status(run)["state"] for run in runs.values()} == {"finished"}
    assert "n_layer" in outcome.out and "dropout" in outcome.out, "the table contains the swept keys"


def test_a_job_on_two_devices_has_two_processes_one_directory_and_the_loss_of_a_single_run(overrides, tmp_path):
    two = ["trainer.devices=2", "trainer.accelerator=cpu"]
    sweep = Sweep(tmp_path, "model.n_layer=1,2", *overrides, *two)
    max_processes = 0
    while sweep.process.poll() is None:
        max_processes = max(max_processes, len(sweep.alive()))
        time.sleep(0.1)
    assert sweep.wait() == 0, sweep.output
    assert max_processes <= 1 + 1 + 2, "the sweep, the launcher of the ranks, and two ranks"
    assert not sweep.alive()
    runs = finished(tmp_path)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"gpt_nano"}
    names = {path.name for path in (tmp_path / "outputs" / "gpt_nano").iterdir()}
    assert names == {*runs, "multirun.yaml", "sweep.csv", "sweep.png"}
    assert [run_artifacts.metrics(run)["devices"] for run in runs.values()] == [2, 2]
    for name, run in runs.items():
        depth = OmegaConf.load(run / ".hydra" / "config.yaml").model.n_layer
        single = process(tmp_path, "train", f"model.n_layer={depth}", *overrides, *two, f"hydra.run.dir=one{depth}")
        assert single.code == 0, single.err
        loss = run_artifacts.metrics(tmp_path / f"one{depth}")["final_val_loss"]
        assert losses(tmp_path / "outputs")[name] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(("rank", "how"), [(1, "raise"), (0, "SIGKILL")])
def test_a_failed_rank_ends_its_job_and_not_the_sweep(overrides, tmp_path, rank, how):
    fail = [FAIL, f"+callbacks.fail.rank={rank}", "+callbacks.fail.step=7", f"+callbacks.fail.how={how}"]
    fail += ["+callbacks.fail.value=${model.n_layer}", "+callbacks.fail.where=2"]
    sweep = Sweep(tmp_path, "model.n_layer=1,2,3", *overrides, "trainer.devices=2", *fail)
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


def test_a_sweep_that_is_killed_repeatedly_equals_the_uninterrupted_sweep(overrides, tmp_path):
    overrides = ["model.n_layer=1,2", "seed=1,2", *overrides]
    overrides += ["trainer.max_steps=150", "trainer.val_check_interval=25", "trainer.log_every_n_steps=1"]
    (tmp_path / "uninterrupted").mkdir()
    assert Sweep(tmp_path / "uninterrupted", *overrides).wait() == 0
    folder = tmp_path / "killed"
    folder.mkdir()
    done: dict[str, dict[str, int]] = {}
    kill_steps = sorted(random.Random(4711).sample(range(20, 4 * 150 - 20), 4))
    for step in kill_steps:
        sweep = Sweep(folder, *overrides)
        while steps_done(folder) < step and sweep.process.poll() is None:
            time.sleep(0.005)
        assert sweep.process.poll() is None, sweep.output
        sweep.kill()
        for name, run in finished(folder).items():
            done.setdefault(name, modification_times(run))
    last = Sweep(folder, *overrides)
    assert last.wait() == 0, last.output
    runs = finished(folder)
    assert len(runs) == 4
    assert done, "at least one run was finished before the last kill"
    for name, before in done.items():
        assert modification_times(runs[name]) == before
        assert f"{name} is already finished" in last.output
    assert losses(folder) == losses(tmp_path / "uninterrupted")


def test_the_same_sweep_from_two_shells_runs_each_job_once(overrides, tmp_path):
    overrides = [*overrides, "model.n_layer=1,2", "trainer.max_steps=40", "trainer.log_every_n_steps=1"]
    sweeps = [Sweep(tmp_path, *overrides) for _ in range(2)]
    assert [sweep.wait() for sweep in sweeps] == [0, 0], "\n".join(sweep.output for sweep in sweeps)
    runs = finished(tmp_path)
    assert len(runs) == 2
    for run in runs.values():
        assert [row["step"] for row in run_artifacts.history(run)] == [str(step) for step in range(1, 41)]
        assert (run / "train.log").read_text().count("parameters") == 1, "started once"
    output = "".join(sweep.output for sweep in sweeps)
    assert output.count("is already finished") == 2


def test_a_sweep_can_be_extended_and_refuses_different_runs_in_its_folders(overrides, tmp_path):
    overrides = ["model.n_layer=1,2", *overrides, "checkpoint=all"]
    assert process(tmp_path, "train", "-m", *overrides).code == 0
    extended = process(tmp_path, "train", "-m", *overrides, "trainer.max_steps=30")
    assert extended.code == 0, extended.err
    runs = finished(tmp_path)
    assert {run_artifacts.metrics(run)["steps"] for run in runs.values()} == {30}
    assert len(runs) == 2
    for run in runs.values():
        config = run / ".hydra" / "config.yaml"
        config.write_text(config.read_text().replace("n_embd: 16", "n_embd: 32"))
    different = process(tmp_path, "train", "-m", *overrides, "trainer.max_steps=30")
    assert different.code == 2
    assert different.err.count("contains a different run: model.n_embd=32 there, 16 here") == 2


def test_a_finished_job_keeps_only_its_weights_and_cannot_be_extended(overrides, tmp_path):
    overrides = ["model.n_layer=1", *overrides]
    assert process(tmp_path, "train", "-m", *overrides).code == 0
    (run,) = finished(tmp_path).values()
    assert [path.name for path in (run / "checkpoints").glob("*.ckpt")] == ["best.ckpt"]
    assert "optimizer_states" not in run_artifacts.checkpoint(run, "best")
    again = process(tmp_path, "train", "-m", *overrides)
    assert (again.code, "is already finished" in again.err) == (0, True), again.err
    extended = process(tmp_path, "train", "-m", "model.n_layer=1,2", *overrides[1:], "trainer.max_steps=30")
    assert extended.code == 1
    assert "checkpoint.keep=auto" in extended.err and "checkpoint=all" in extended.err
    assert "1 of 2 jobs did not succeed. name=NAME gives" in extended.err
    assert "Traceback" not in extended.err
    rows = csv.DictReader((run.parent / "sweep.csv").open())
    assert {(row["model.n_layer"], row["steps"]) for row in rows} == {("1", "20"), ("2", "30")}, "the table has both"


def test_a_refused_job_does_not_end_the_sweep(tiny, tmp_path):
    fixed = [override for override in tiny if not override.startswith("model.n_head")]
    outcome = process(tmp_path, "train", "-m", *fixed, "model.n_head=3,2")
    assert outcome.code == 1
    assert "model.n_head=3 does not divide" in outcome.err
    assert "Traceback" not in outcome.err
    (run,) = finished(tmp_path).values()
    assert OmegaConf.load(run / ".hydra" / "config.yaml").model.n_head == 2
    assert {path.name for path in run.parent.iterdir()} == {run.name, "multirun.yaml", "sweep.csv", "sweep.png"}


def test_a_sweep_of_refused_jobs_is_a_user_error_and_leaves_no_files(tiny, tmp_path):
    fixed = [override for override in tiny if not override.startswith("model.n_")]
    outcome = process(tmp_path, "train", "-m", *fixed, "model.n_embd=16", "model.n_layer=1,2", "model.n_head=3")
    assert outcome.code == 2, outcome.err
    assert not list(tmp_path.iterdir())


def test_configs_of_config_dir_can_be_swept(tiny, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tall.yaml").write_text("defaults: [gpt_nano, _self_]\nn_layer: 3\n")
    fixed = [override for override in tiny if not override.startswith(("model.n_layer", "model="))]
    arguments = ["--config-dir", str(tmp_path / "mine"), "model=tall,gpt_nano", "recipe=gpt_nano"]
    outcome = process(tmp_path, "train", "-m", *arguments, *fixed)
    assert outcome.code == 0, outcome.err
    depths = {OmegaConf.load(run / ".hydra" / "config.yaml").model.n_layer for run in finished(tmp_path).values()}
    assert depths == {3, 4}


def test_a_refused_job_and_its_reason_are_printed_after_the_table(overrides, tmp_path):
    fixed = [override for override in overrides if not override.startswith("model.n_head")]
    outcome = process(tmp_path, "train", "-m", "model.n_layer=1", *fixed, "model.n_head=3,2")
    assert outcome.code == 1
    *_, refused, count = outcome.err.splitlines()
    assert refused.startswith("refused: ") and "model.n_head=3 does not divide model.n_embd=16" in refused
    assert count == "train.py: 1 of 2 jobs did not succeed"


def test_all_files_of_a_sweep_over_lecture_steps_are_next_to_the_runs(tiny, tmp_path):
    fixed = [override for override in tiny if not override.startswith("model.")]
    other_sweep = tmp_path / "outputs" / "gpt_nano" / "multirun.yaml"
    other_sweep.parent.mkdir(parents=True)
    other_sweep.write_text("of another sweep")
    fixed += ["callbacks.samples.max_new_tokens=0"]
    outcome = process(tmp_path, "train", "-m", "+lecture=bigram,head", *fixed)
    assert outcome.code == 0, outcome.err
    runs = finished(tmp_path)
    assert len(runs) == 2
    assert {run.parent.name for run in runs.values()} == {"lecture"}
    names = {path.name for path in (tmp_path / "outputs" / "lecture").iterdir()}
    assert names == {*runs, "multirun.yaml", "sweep.csv", "sweep.png"}
    assert other_sweep.read_text() == "of another sweep"
    lines = outcome.out.splitlines()
    (best,) = (line.split()[1] for line in lines if line.startswith("   best"))
    assert tmp_path / best in runs.values()
    assert any(line.startswith(" sample") and line.endswith(f"sample.py run={best}") for line in lines)


def test_a_sweep_leaves_no_files_in_the_folder_of_a_config_that_it_does_not_train(tiny, tmp_path):
    fixed = [override for override in tiny if not override.startswith("model.") and override != "model=gpt_nano"]
    fixed += ["callbacks.samples.max_new_tokens=0"]
    outcome = process(tmp_path, "train", "-m", "lecture=glob([bi*,hea*])", *fixed)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"lecture"}


@pytest.fixture
def compose_context():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.usefixtures("compose_context")
def test_a_glob_over_the_lecture_runs_its_models_in_their_order():
    overrides = ["seed=1,2", "lecture=glob(*,exclude=scaled_up)", "model/norm=glob(*)"]
    names = "bigram,head,multi_head,feed_forward,residual,layer_norm,scaled_up_cpu"
    assert in_lecture_order(overrides) == ["seed=1,2", f"lecture={names}", "model/norm=glob(*)"]
    for chosen in ("lecture=head,bigram", "lecture=head"):
        assert in_lecture_order([chosen]) == [chosen], "the order of the command line"
    assert in_lecture_order(["lecture=glob(x*)"]) == ["lecture=glob(x*)"], "an error of Hydra"


def test_the_lecture_order_has_every_model():
    assert {*LECTURE} == {file.stem for file in (CONF / "lecture").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_sweep_ends_all_processes_also_during_imports(overrides, tmp_path, number):
    sweep = Sweep(tmp_path, "model.n_layer=1,2", *overrides, "trainer.max_steps=100000")
    while len(sweep.alive()) < 2:
        time.sleep(0.002)
    time.sleep(1.0)  # the job is importing its modules
    sweep.process.send_signal(number)
    assert sweep.wait(60) == 3, sweep.output
    assert not sweep.alive()


def test_ctrl_c_ends_the_sweep_with_code_3_and_the_same_command_resumes_it(overrides, tmp_path):
    swept = ["model.n_layer=1,2", "trainer.max_steps=4000", "trainer.log_every_n_steps=1"]
    sweep = Sweep(tmp_path, *overrides, *swept)
    while steps_done(tmp_path) < 20:
        assert sweep.process.poll() is None, sweep.output
        time.sleep(0.01)
    os.killpg(sweep.process.pid, signal.SIGINT)  # as the terminal does
    assert sweep.wait() == 3, sweep.output
    assert "Run the same command again to resume it" in sweep.output
    assert "Traceback" not in sweep.output
    (run,) = (file.parent for file in Path(tmp_path).rglob("status.json"))
    assert run_artifacts.status(run)["state"] == "interrupted"
    step = run_artifacts.checkpoint(run)["global_step"]
    resumed = process(tmp_path, "train", "-m", *overrides, "model.n_layer=1", f"trainer.max_steps={step + 5}")
    assert resumed.code == 2 and "planned for 4000" in resumed.err
