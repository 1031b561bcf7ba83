"""A trained model from its run directory."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

import chargpt
from chargpt.checkpoint import torch_file
from chargpt.errors import UserError
from chargpt.inference.pretrained import find_checkpoint, latest_run, load


def test_a_loaded_model_has_the_weights_of_the_best_checkpoint_and_is_in_eval_mode(finished):
    trained = chargpt.load(finished)
    saved = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(weight, saved["state_dict"][f"model.{name}"])
    assert not trained.model.training
    assert trained.step == json.loads((finished / "metrics.json").read_text())["best_step"]


def test_the_three_lines_work_without_lightning_or_hydra(finished, tmp_path):
    script = (
        "import sys, chargpt\n"
        "model = chargpt.load(sys.argv[1])\n"
        "print(model.generate('The ', 20))\n"
        "assert not {'lightning', 'hydra', 'omegaconf', 'torchmetrics'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(finished)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The ")
    assert len(done.stdout) == len("The ") + 20 + 1


def test_generate_gives_the_prompt_and_so_many_characters_the_same_for_the_same_seed(finished):
    trained = chargpt.load(finished)
    text = trained.generate("The king", 30, seed=1)
    assert text.startswith("The king")
    assert len(text) == len("The king") + 30
    assert text == trained.generate("The king", 30, seed=1)
    assert text != trained.generate("The king", 30, seed=2)


def test_without_a_prompt_the_text_begins_with_the_first_character_of_the_vocabulary(finished):
    assert chargpt.load(finished).generate(max_new_tokens=3)[0] == "\n"


@pytest.mark.parametrize(("prompt", "hint"), [("", "empty"), ("war @ love", "'@'")])
def test_a_prompt_that_cannot_be_said_is_refused_before_anything_is_drawn(finished, prompt, hint):
    with pytest.raises(UserError, match=hint):
        chargpt.load(finished).stream(prompt, 5)


def test_a_checkpoint_works_alone_wherever_it_was_copied(finished, tmp_path):
    alone = shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    assert load(alone).generate("The", 10) == load(finished).generate("The", 10)


@pytest.mark.parametrize("part", ["torch.nn.Flatten", "torch.nn.CosineSimilarity"])
def test_parts_that_do_not_go_together_are_told(finished, tmp_path, part):
    content = torch_file.read(finished / "checkpoints" / "best.ckpt")
    content["chargpt"]["config"]["model"]["logits"] = {"_target_": part}
    torch_file.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"odd\.ckpt: the model that its config describes cannot be used"):
        load(tmp_path / "odd.ckpt")


def test_latest_is_the_run_that_finished_last(tmp_path):
    for i, name in enumerate(("b", "a", "c")):
        run = tmp_path / "outputs" / name
        run.mkdir(parents=True)
        if name != "c":  # not finished
            (run / "metrics.json").write_text("{}")
            stamp = time.time() + i
            os.utime(run / "metrics.json", (stamp, stamp))
    assert latest_run(tmp_path / "outputs").name == "a"


def test_no_run_at_all_and_a_run_without_checkpoints_say_so(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        latest_run(tmp_path)
    with pytest.raises(UserError, match="no run at"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(tmp_path / "empty")
