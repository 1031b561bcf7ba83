"""visualize.py as it is used: files, TensorBoard, and what it says about models that have no attention."""

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
    """A finished run of its own, to draw into."""
    return shutil.copytree(finished, tmp_path / "run")


def test_it_draws_every_layer_and_the_surprise(run_cli, run):
    outcome = run_cli("visualize", f"run={run}", f"text={TEXT}")
    assert outcome.code == 0, outcome.err
    names = {"surprise.png", "attention_layer_1.png", "attention_layer_2.png"}
    assert {p.name for p in (run / "pictures").iterdir()} == names
    for name in names:
        assert str(run / "pictures" / name) in outcome.out
        with Image.open(run / "pictures" / name) as picture:
            picture.load()
            assert min(picture.size) > 200
            assert len(set(picture.convert("RGB").resize((50, 50)).getdata())) > 20, "not an empty sheet"
    assert "of the first 16 characters" in outcome.out


def test_it_shows_in_tensorboard_the_pictures_and_the_embeddings_by_kind(run_cli, run):
    for _ in range(2):  # a second look replaces the first
        assert run_cli("visualize", f"run={run}", f"text={TEXT}").code == 0
    board = run / "tensorboard"
    events = EventAccumulator(str(board)).Reload()
    assert set(events.Tags()["images"]) == {"look/surprise", "look/attention_layer_1", "look/attention_layer_2"}
    trained = chargpt.load(run)
    config = (board / "projector_config.pbtxt").read_text()
    assert config.count("tensor_path") == 1
    (metadata,) = board.rglob("metadata.tsv")
    rows = list(csv.reader(metadata.open(newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    characters = trained.tokenizer.characters
    assert rows == [["token", "kind"], *([make_visible(c), character_class(c)] for c in characters)]
    (tensors,) = board.rglob("tensors.tsv")
    vectors = [[float(x) for x in line.split("\t")] for line in tensors.read_text().splitlines()]
    assert vectors == pytest.approx(trained.model.token_embedding.weight.numpy(), abs=1e-6)


def test_without_a_text_it_takes_the_validation_text(run_cli, run, text):
    outcome = run_cli("visualize", f"run={run}")
    assert outcome.code == 0, outcome.err
    shown = text[int(0.9 * len(text)) :][:64]
    asked = run_cli("visualize", f"run={run}", f"text={shown}")
    assert asked.out == outcome.out
    assert "over 63 characters" in outcome.out


def test_a_table_has_no_attention_to_draw_and_says_so(run_cli, tiny, tmp_path):
    words = [w for w in tiny if not w.startswith("model") or "block_size" in w]
    trained = run_cli("train", "model=bigram", *words, "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    outcome = run_cli("visualize", "run=run", f"text={TEXT}")
    assert outcome.code == 0, outcome.err
    assert "none to draw: a Bigram looks at nothing but the last character" in outcome.out
    assert [p.name for p in (tmp_path / "run" / "pictures").iterdir()] == ["surprise.png"]


def test_a_checkpoint_that_stands_alone_is_drawn_where_it_is_said(run_cli, finished, tmp_path):
    shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    refused = run_cli("visualize", "run=alone.ckpt", f"text={TEXT}")
    assert refused.code == 2
    assert "folder=FOLDER" in refused.err
    outcome = run_cli("visualize", "run=alone.ckpt", f"text={TEXT}", "folder=here")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "here").glob("*.png"))) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"alone.ckpt", "here"}


@pytest.mark.parametrize("name", ["~nobody_at_all", os.fsdecode(b"\xff")])
def test_the_pictures_go_where_it_is_said_whatever_signs_the_name_holds(run_cli, run, tmp_path, name):
    outcome = run_cli("visualize", f"run={run}", f"text={TEXT}", f"folder={name}")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / name).glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("text=k", "two characters or more"),
        ("text=king€", "€"),
        ("text=@nowhere.txt", "nowhere.txt"),
        (f"text={'king' * 500}", "2,000 characters"),
        ("folder=taken/in", "folder=FOLDER"),
        ("device=cuda:99", "device=cpu"),
    ],
)
def test_mistakes_are_told_and_draw_nothing(run_cli, run, tmp_path, word, told):
    (tmp_path / "taken").write_text("a file")
    words = [f"run={run}", word] + ([] if word.startswith("text") else [f"text={TEXT}"])
    outcome = run_cli("visualize", *words)
    assert outcome.code == 2
    assert told in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert not (run / "pictures").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"run", "taken"}
