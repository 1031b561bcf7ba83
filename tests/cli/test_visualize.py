"""visualize.py: image files, TensorBoard, models without attention, and user errors."""

import csv
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import chargpt
from chargpt.analysis.token_labels import character_class, make_visible

TEXT = "The king shall speak of love.\nO what a night"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to write to."""
    return shutil.copytree(finished, tmp_path / "run")


def test_visualize_draws_the_attention_of_every_layer_and_the_surprisal(run_cli, run):
    outcome = run_cli("visualize", f"run={run}", f"text={TEXT}")
    assert outcome.code == 0, outcome.err
    names = {"surprise.png", "attention_layer_1.png", "attention_layer_2.png"}
    assert {p.name for p in (run / "pictures").iterdir()} == names
    for name in names:
        assert str(run / "pictures" / name) in outcome.out
        with Image.open(run / "pictures" / name) as image:
            image.load()
            assert min(image.size) > 200
            assert len(set(image.convert("RGB").resize((50, 50)).getdata())) > 20, "the image is empty"
    assert "of the first 16 characters" in outcome.out


@pytest.mark.slow
def test_visualize_logs_images_and_token_embeddings_to_tensorboard(run_cli, run):
    for _ in range(2):  # a second call replaces the first
        outcome = run_cli("visualize", f"run={run}", f"text={TEXT}")
        assert outcome.code == 0, outcome.err
    assert f"--logdir {run.parent}\n" in outcome.out, "where the run has a name"
    log_dir = run / "visualize"
    events = EventAccumulator(str(log_dir)).Reload()
    assert set(events.Tags()["images"]) == {
        f"visualize/{name}" for name in ("surprise", "attention_layer_1", "attention_layer_2")
    }
    trained = chargpt.load(run)
    assert len(list(log_dir.glob("events.out.tfevents.*"))) == 1
    config = (log_dir / "projector_config.pbtxt").read_text()
    assert config.count("tensor_path") == 1
    (metadata,) = log_dir.rglob("metadata.tsv")
    rows = list(csv.reader(metadata.open(newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    characters = trained.tokenizer.characters
    assert rows == [["token", "kind"], *([make_visible(c), character_class(c)] for c in characters)]
    (tensors,) = log_dir.rglob("tensors.tsv")
    embeddings = [[float(x) for x in line.split("\t")] for line in tensors.read_text().splitlines()]
    assert embeddings == pytest.approx(trained.model.token_embedding.weight.numpy(), abs=1e-6)


@pytest.mark.slow
def test_the_default_text_is_the_start_of_the_validation_split(run_cli, run, text):
    outcome = run_cli("visualize", f"run={run}")
    assert outcome.code == 0, outcome.err
    start = text[int(0.9 * len(text)) :][:64]
    explicit = run_cli("visualize", f"run={run}", f"text={start}")
    assert explicit.out == outcome.out
    assert "over 63 characters" in outcome.out


def test_a_bigram_model_has_no_attention_to_draw(run_cli, tiny, tmp_path):
    overrides = [override for override in tiny if not override.startswith("model") or "block_size" in override]
    trained = run_cli("train", "model=bigram", *overrides, "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    outcome = run_cli("visualize", "run=run", f"text={TEXT}")
    assert outcome.code == 0, outcome.err
    assert "none: no module of this Bigram has attention_weights" in outcome.out
    assert [p.name for p in (tmp_path / "run" / "pictures").iterdir()] == ["surprise.png"]


def test_a_checkpoint_outside_a_run_directory_requires_an_output_folder(run_cli, finished, tmp_path):
    shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    refused = run_cli("visualize", "run=alone.ckpt", f"text={TEXT}")
    assert refused.code == 2
    assert "folder=FOLDER" in refused.err
    outcome = run_cli("visualize", "run=alone.ckpt", f"text={TEXT}", "folder=here")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "here").glob("*.png"))) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"alone.ckpt", "here"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["~nobody_at_all", os.fsdecode(b"\xff")])
def test_the_output_folder_may_have_any_name(run_cli, run, tmp_path, name):
    outcome = run_cli("visualize", f"run={run}", f"text={TEXT}", f"folder={name}")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / name).glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("text=k", "two characters or more"),
        ("text=king€", "€"),
        ("text=@nowhere.txt", "nowhere.txt"),
        (f"text={'king' * 500}", "2,000 characters"),
        ("folder=taken/in", "folder=FOLDER"),
        ("device=cuda:99", "device=cpu"),
    ],
)
def test_user_errors_are_reported_and_no_file_is_written(run_cli, run, tmp_path, override, message):
    (tmp_path / "taken").write_text("a file")
    text = [] if override.startswith("text") else [f"text={TEXT}"]
    outcome = run_cli("visualize", f"run={run}", override, *text)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert not (run / "pictures").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"run", "taken"}
