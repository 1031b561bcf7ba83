"""Loading a trained model from its run directory."""

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
from chargpt.inference.pretrained import data_config, find_checkpoint, latest_run, load


def test_load_returns_the_best_checkpoint_in_eval_mode(finished):
    trained = chargpt.load(finished)
    saved = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(weight, saved["state_dict"][f"model.{name}"])
    assert not trained.model.training
    assert trained.step == json.loads((finished / "metrics.json").read_text())["best_step"]


def test_the_data_set_of_a_file_creates_no_folder(tmp_path):
    for data in ({"cache_dir": str(tmp_path / "new")}, {"_args_": [str(tmp_path / "new")]}):
        assert "new" not in str(data_config({"data": {"_target_": "some.DataModule", **data}}))
    assert data_config({"data": {"cache_dir": str(tmp_path)}}) == {"cache_dir": str(tmp_path)}


def test_load_and_generate_import_neither_lightning_nor_hydra(finished, tmp_path):
    script = (
        "import sys, chargpt\n"
        "model = chargpt.load(sys.argv[1])\n"
        "print(model.generate('The ', 20))\n"
        "assert not {'lightning', 'hydra', 'omegaconf', 'torchmetrics'} & set(sys.modules), sorted(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(finished)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("The ")
    assert len(result.stdout) == len("The ") + 20 + 1


def test_generate_returns_the_prompt_and_max_new_tokens_characters_reproducibly(finished):
    trained = chargpt.load(finished)
    text = trained.generate("The king", 30, seed=1)
    assert text.startswith("The king")
    assert len(text) == len("The king") + 30
    assert text == trained.generate("The king", 30, seed=1)
    assert text != trained.generate("The king", 30, seed=2)


def test_the_default_prompt_is_the_first_character_of_the_vocabulary(finished):
    assert chargpt.load(finished).generate(max_new_tokens=3)[0] == "\n"


@pytest.mark.parametrize(("prompt", "hint"), [("", "empty"), ("war @ love", "'@'")])
def test_an_invalid_prompt_raises_an_error_before_sampling(finished, prompt, hint):
    with pytest.raises(UserError, match=hint):
        chargpt.load(finished).stream(prompt, 5)


def test_a_copied_checkpoint_can_be_loaded_on_its_own(finished, tmp_path):
    copy = shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    assert load(copy).generate("The", 10) == load(finished).generate("The", 10)


@pytest.mark.parametrize("target", ["torch.nn.Flatten", "torch.nn.CosineSimilarity"])
def test_incompatible_components_raise_an_error(finished, tmp_path, target):
    content = torch_file.read(finished / "checkpoints" / "best.ckpt")
    content["chargpt"]["config"]["model"]["logits"] = {"_target_": target}
    torch_file.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"odd\.ckpt: the model that its config describes cannot be used"):
        load(tmp_path / "odd.ckpt")


def test_latest_run_is_the_one_that_finished_last(tmp_path):
    for i, name in enumerate(("b", "a", "c")):
        run = tmp_path / "outputs" / name
        run.mkdir(parents=True)
        if name != "c":  # not finished
            (run / "metrics.json").write_text("{}")
            stamp = time.time() + i
            os.utime(run / "metrics.json", (stamp, stamp))
    assert latest_run(tmp_path / "outputs").name == "a"


def test_runs_of_debug_are_never_the_latest(tmp_path):
    for name in ("a", "debug/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text("{}")
    assert latest_run(tmp_path) == tmp_path / "a"


def test_missing_runs_and_runs_without_checkpoints_raise_an_error(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        latest_run(tmp_path)
    with pytest.raises(UserError, match="no run at"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(tmp_path / "empty")
