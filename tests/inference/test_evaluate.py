"""evaluate.py: the figures of a trained model, against metrics.json and against a sum by hand."""

import json
import math
import re

import pytest
import torch
from torch.nn import functional as F

import chargpt
from chargpt.checkpoint import torch_file
from chargpt.inference.evaluate import mean_loss


def by_hand(trained, text: str) -> float:
    """Mean loss over the text, one block after the other, each on its own."""
    tokens_N, T = trained.tokenizer.encode(text).long(), trained.model.block_size
    losses = []
    for start in range(0, len(tokens_N) - 1, T):
        block = tokens_N[start : start + T + 1]
        losses.append(F.cross_entropy(trained.model(block[None, :-1])[0], block[1:], reduction="none"))
    return torch.cat(losses).mean().item()


def figures(out: str) -> dict[str, float]:
    return {name: float(re.search(rf"{name}\s+([\d.]+)", out)[1]) for name in ("loss", "perplexity", "bits")}


def test_the_validation_split_gives_the_loss_of_metrics_json(run_cli, finished):
    outcome = run_cli("evaluate", f"run={finished}")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((finished / "metrics.json").read_text())
    found = figures(outcome.out)
    assert found["loss"] == pytest.approx(metrics["val_loss"], abs=1e-4)
    assert found["bits"] == pytest.approx(metrics["val_bpc"], abs=1e-4)
    assert found["perplexity"] == pytest.approx(metrics["val_perplexity"], rel=1e-3)


def test_the_loss_of_metrics_json_is_that_of_the_best_checkpoint_over_the_last_tenth_of_the_text(finished, text):
    trained = chargpt.load(finished)
    last_tenth = text[int(0.9 * len(text)) :]
    recorded = json.loads((finished / "metrics.json").read_text())["val_loss"]
    assert mean_loss(trained.model, trained.tokenizer.encode(last_tenth), 16384) == pytest.approx(recorded, abs=1e-5)
    assert by_hand(trained, last_tenth) == pytest.approx(recorded, abs=1e-5)


def test_a_checkpoint_that_says_less_of_its_validation_is_measured_all_the_same(run_cli, finished, tmp_path):
    content = torch_file.read(finished / "checkpoints" / "best.ckpt")
    del content["chargpt"]["config"]["data"]["validation_tokens"]
    torch_file.save(content, tmp_path / "older.ckpt")
    outcome = run_cli("evaluate", f"run={tmp_path / 'older.ckpt'}")
    assert outcome.code == 0, outcome.err
    assert figures(outcome.out) == figures(run_cli("evaluate", f"run={finished}").out)


def test_another_text_is_measured_whole_with_the_model_s_own_vocabulary(run_cli, finished, tmp_path):
    text = "What is the king to love.\n" * 5
    (tmp_path / "other.txt").write_text(text)
    outcome = run_cli("evaluate", f"run={finished}", "data=text_file", "data.path=other.txt", "split=all")
    assert outcome.code == 0, outcome.err
    expected = by_hand(chargpt.load(finished), text)
    assert figures(outcome.out)["loss"] == pytest.approx(expected, abs=1e-4)
    assert figures(outcome.out)["bits"] == pytest.approx(expected / math.log(2), abs=1e-4)
    assert f"{len(text) - 1} predictions" in outcome.out


@pytest.mark.parametrize("tokens_per_pass", [1, 16, 100, 10**6])
def test_the_loss_does_not_depend_on_how_many_blocks_go_through_at_once(finished, text, tokens_per_pass):
    trained = chargpt.load(finished)
    part = text[:333]
    found = mean_loss(trained.model, trained.tokenizer.encode(part), tokens_per_pass)
    assert found == pytest.approx(by_hand(trained, part), abs=1e-5)
