"""sample.py: text on standard output, and nothing else."""

import subprocess
import sys

import chargpt
from tests.conftest import REPO, process


def test_standard_output_is_the_text_that_the_python_api_generates(finished, tmp_path):
    outcome = process(tmp_path, "sample", f"run={finished}", "prompt=The king's night", "max_new_tokens=40", "seed=5")
    # The vocabulary has no apostrophe.
    assert outcome.code == 2
    assert outcome.out == ""
    assert '"\'"' in outcome.err
    outcome = process(tmp_path, "sample", f"run={finished}", "prompt=The king", "max_new_tokens=40", "seed=5")
    assert outcome.code == 0, outcome.err
    assert outcome.out == chargpt.load(finished).generate("The king", 40, seed=5) + "\n"
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_from_a_file_keeps_its_line_breaks(run_cli, finished, tmp_path):
    (tmp_path / "scene.txt").write_text("The king.\nThe men")
    outcome = run_cli("sample", f"run={finished}", "prompt=@scene.txt", "max_new_tokens=5")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("The king.\nThe men")
    assert len(outcome.out) == len("The king.\nThe men") + 5 + 1


def test_several_samples_are_separated_by_a_line_and_start_with_the_prompt(run_cli, finished):
    outcome = run_cli("sample", f"run={finished}", "prompt=The", "max_new_tokens=10", "num_samples=3")
    samples = outcome.out.split("\n" + "-" * 80 + "\n")
    assert len(samples) == 3
    assert all(sample.startswith("The") for sample in samples)


def test_by_default_the_latest_run_in_outputs_is_sampled(run_cli, finished, tmp_path):
    (tmp_path / "outputs").symlink_to(finished.parent.parent)
    outcome = run_cli("sample", "max_new_tokens=5", "temperature=0")
    assert outcome.code == 0, outcome.err
    assert "20 steps" in outcome.err


def test_a_closed_pipe_ends_sampling_without_an_error(finished):
    command = f"{sys.executable} {REPO / 'sample.py'} run={finished} max_new_tokens=3000 prompt=The | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert len(done.stdout) == 10
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
