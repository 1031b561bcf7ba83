"""export.py: an exported file contains the same model."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import chargpt
from chargpt.config.instantiate import SAVED_KEYS, instantiate
from chargpt.data.tokenizer import CharTokenizer
from chargpt.inference.export import export_model
from chargpt.inference.pretrained import PretrainedModel, load
from tests.conftest import REPO

SMALL = ["model.n_layer=2", "model.n_head=2", "model.n_embd=16"]


def untrained(model: str, *overrides: str) -> PretrainedModel:
    """Returns the initial model of `train.py model=...`, with noise added to its weights."""
    with hydra.initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        composed = hydra.compose("train", [f"model={model}", "model.block_size=8", *overrides])
    settings = OmegaConf.to_container(composed.model, resolve=True)
    tokenizer = CharTokenizer("\n !'?abcdefÄ☃\U0001f0a1")
    torch.manual_seed(0)
    module = instantiate(settings, "model", vocab_size=tokenizer.vocab_size).eval().requires_grad_(False)
    for weight in module.parameters():  # so that weights initialized to 0 differ
        weight.add_(torch.randn_like(weight), alpha=0.1)
    config = {key: {} for key in SAVED_KEYS} | {"name": model, "seed": 0, "model": settings}
    return PretrainedModel(module, tokenizer, config, 7, Path("nowhere.ckpt"), "0" * 64)


def assert_same(one: PretrainedModel, other: PretrainedModel) -> None:
    weights = other.model.state_dict()
    assert weights.keys() == one.model.state_dict().keys()
    for name, weight in one.model.state_dict().items():
        assert weight.dtype == weights[name].dtype
        assert torch.equal(weight.view(torch.uint8), weights[name].view(torch.uint8)), name
    assert other.tokenizer.as_config() == one.tokenizer.as_config()
    assert (other.config, other.step, other.corpus_sha256) == (one.config, one.step, one.corpus_sha256)
    assert other.generate("a", 40, seed=3) == one.generate("a", 40, seed=3)


def test_an_export_of_a_trained_run_contains_the_same_model(finished, tmp_path):
    trained = load(finished)
    export_model(trained, tmp_path / "model.safetensors")
    exported = chargpt.load(tmp_path / "model.safetensors")
    assert_same(trained, exported)
    assert not exported.model.training
    assert exported.path == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("bigram", []),
        ("gpt_nano", SMALL),
        ("gpt_nano", [*SMALL, "model.tie_weights=false", "model.bias=true"]),
        ("gpt_small", [*SMALL, "model/position=rotary", "model/norm=rms_norm"]),
        ("gpt_modern", SMALL),
        ("gpt_ensemble", SMALL),
        ("gpt_ensemble", [*SMALL, "model.tie_weights=true"]),
    ],
)
def test_an_export_of_any_model_contains_the_same_model(tmp_path, model, overrides):
    trained = untrained(model, *overrides)
    export_model(trained, tmp_path / "model.safetensors")
    assert_same(trained, load(tmp_path / "model.safetensors"))


def test_a_tied_weight_is_exported_once_and_tied_when_loaded(tmp_path):
    trained = untrained("gpt_nano", *SMALL)
    export_model(trained, tmp_path / "a.safetensors")
    names = load_file(tmp_path / "a.safetensors").keys()
    assert trained.model.state_dict().keys() - names == {"head.weight"}
    loaded = load(tmp_path / "a.safetensors").model
    assert loaded.head.weight is loaded.token_embedding.weight


def test_the_digest_depends_on_the_model_only(tmp_path):
    trained, path = untrained("bigram"), tmp_path / "a.safetensors"
    digest = export_model(trained, path)
    assert export_model(load(path), path) == digest
    next(trained.model.parameters())[0, 0] += 1
    assert export_model(trained, path) != digest


def test_an_export_loads_without_lightning_or_hydra(tmp_path):
    export_model(untrained("gpt_modern", *SMALL), tmp_path / "model.safetensors")
    script = (
        "import sys, chargpt\n"
        "print(chargpt.load('model.safetensors').generate('a', 5))\n"
        "assert not {'lightning', 'hydra', 'omegaconf', 'torchmetrics'} & set(sys.modules), sorted(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, for tests that write into it."""
    return shutil.copytree(finished, tmp_path / "outputs" / "run")


def test_the_latest_run_is_exported_into_its_directory(run_cli, run):
    outcome = run_cli("export")
    assert outcome.code == 0, outcome.err
    path = Path("outputs/run/model.safetensors")
    assert outcome.err == ""
    rows = dict(re.findall(r"^ *(\w+)  (.*)$", outcome.out, re.MULTILINE))
    assert rows["file"] == str(path)
    assert rows["size"] == f"{path.stat().st_size:,} bytes"
    metrics = json.loads((run / "metrics.json").read_text())
    assert rows["weights"] == f"{metrics['parameters']:,} after {metrics['best_step']:,} steps"
    assert_same(load(run), load(path))


def test_a_checkpoint_is_exported_next_to_itself_and_replaces_an_earlier_export(run_cli, run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    for _ in range(2):
        outcome = run_cli("export", f"run={checkpoint}")
        assert outcome.code == 0, outcome.err
    assert_same(load(checkpoint), load(run / "checkpoints" / "last.safetensors"))
    assert checkpoint.read_bytes() == before


def test_the_file_may_have_any_name(run_cli, run, tmp_path):
    (tmp_path / "a, (b) = {c}").mkdir()
    for name in ("model.safetensors", "model", "a, (b) = {c}/märchen $1.st"):
        outcome = run_cli("export", f"run={run}", f"file={name}")
        assert outcome.code == 0, outcome.err
        assert f"{name}\n" in outcome.out
        assert_same(load(run), load(tmp_path / name))


def test_the_other_commands_accept_an_export_as_the_run(run_cli, run):
    assert run_cli("export", f"run={run}", "file=model").code == 0
    overrides = ["prompt=The ", "max_new_tokens=30"]
    sample = run_cli("sample", "run=model", *overrides)
    assert sample.code == 0, sample.err
    assert sample.out == run_cli("sample", f"run={run}", *overrides).out
    evaluation = run_cli("evaluate", "run=model")
    assert evaluation.code == 0, evaluation.err
    assert evaluation.out.splitlines()[1:] == run_cli("evaluate", f"run={run}").out.splitlines()[1:]
    visualization = run_cli("visualize", "run=model", "text=The king", "folder=pictures")
    assert visualization.code == 0, visualization.err
    assert Path("pictures/surprise.png").exists()


@pytest.mark.parametrize("name", ["best.ckpt", "notes.txt"])
def test_only_an_earlier_export_is_overwritten(run_cli, run, tmp_path, name):
    path = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / name)
    before = path.read_bytes()
    outcome = run_cli("export", f"run={run}", f"file={name}")
    assert outcome.code == 2
    assert "choose another name" in outcome.err
    assert path.read_bytes() == before


def test_training_cannot_be_resumed_from_an_export(run_cli, run):
    assert run_cli("export", f"run={run}", "file=model.safetensors").code == 0
    outcome = run_cli("train", "resume=model.safetensors")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
