"""The settings and flags of other programs are answered with their names here."""

import shlex

import pytest
from omegaconf import OmegaConf

from chargpt.cli.app import _settings_of
from chargpt.config.synonyms import SYNONYMS, without_dashes
from tests.conftest import REPO


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("sample --start=Hello", "prompt=Hello"),
        ("sample '--start=Hello you'", "'prompt=Hello you'"),
        ("sample --num-samples=3", "num_samples=3"),
        ("sample --device=cpu", "device=cpu"),
        ("sample --run=x", "run=..."),
        ("sample ckpt_path=x", "run"),
        ("sample --out_dir=x", "run=x"),
        ("sample hydra.run.dir=x", "run=RUN"),
        ("sample model=gpt_nano", "model is not a setting of this command"),
        ("train --batch_size=32", "data.batch_size=32"),
        ("train --n_layer 4", "model.n_layer=..."),
        ("train --dropout=0.1", "model.dropout=0.1"),
        ("train --learning_rate=0.1", "optimizer.lr=0.1"),
        ("train --max_iters 5", "trainer.max_steps=..."),
        ("train ckpt_path=x", "resume"),
        ("train device=cpu", "trainer.accelerator"),
        ("train tags=[a]", "name"),
        ("train model.lr=1", "optimizer.lr"),
        ("train trainer.gpus=2", "trainer.devices"),
        ("train --wandb_log=True", "logger=wandb"),
    ],
)
def test_a_word_of_another_program_is_answered_with_ours(run_cli, command, answer):
    name, *arguments = shlex.split(command)
    outcome = run_cli(name, *arguments)
    assert outcome.code == 2
    assert answer in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_every_synonym_names_a_setting_that_exists():
    train = OmegaConf.load(REPO / "conf" / "trainer" / "auto.yaml")
    settings = {f"trainer.{name}" for name in train}
    for names in SYNONYMS.values():
        for name in names:
            if name.startswith("trainer."):
                assert name in settings
            elif "." not in name and "=" not in name:
                assert any(name in _settings_of(command) for command in ("train", "sample", "visualize", "export"))


def test_an_unknown_flag_has_no_answer():
    assert without_dashes("--bogus=1", {"prompt"}) is None
