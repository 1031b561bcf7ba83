"""Loading a trained model from its run directory."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import chargpt
from chargpt.checkpoint import torch_file
from chargpt.errors import UserError
from chargpt.inference.pretrained import data_config, find_checkpoint, load


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


def test_missing_runs_and_runs_without_checkpoints_raise_an_error(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(tmp_path / "empty")


def test_a_folder_of_runs_is_a_user_error_that_names_its_newest_run(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "status.json").write_text("{}")
        os.utime(tmp_path / "outputs" / name / "status.json", (1000 + len(name), 1000 if name == "b" else 2000))
    with pytest.raises(UserError, match=r"is a folder of runs: choose one of them\. The newest is .*outputs/a"):
        find_checkpoint(tmp_path / "outputs")
    with pytest.raises(UserError, match="interrupted before its first"):
        find_checkpoint(tmp_path / "outputs" / "a")
    with pytest.raises(UserError, match=r"The only folder in .* is outputs"):
        find_checkpoint(tmp_path / "nowhere")


def test_several_samples_are_a_list_whose_first_is_the_single_sample(finished):
    model = chargpt.load(finished)
    samples = model.generate("The ", 10, num_samples=3, seed=5)
    assert samples[0] == model.generate("The ", 10, seed=5)
    assert [len(sample) for sample in samples] == [14, 14, 14]
    assert len(set(samples)) > 1
    assert model.generate("The ", 0, num_samples=2) == ["The ", "The "]
