"""evaluate.py: the metrics of a trained model, compared to metrics.json and to an explicit sum."""

import json
import math
import re

import pytest
import torch
from torch.nn import functional as F

import chargpt
from chargpt.checkpoint import torch_file
from chargpt.inference.evaluate import mean_loss


def reference_loss(trained, text: str) -> float:
    """Returns the mean loss over the text, computed block by block."""
    tokens_N, T = trained.tokenizer.encode(text).long(), trained.model.block_size
    losses = []
    for start in range(0, len(tokens_N) - 1, T):
        block = tokens_N[start : start + T + 1]
        losses.append(F.cross_entropy(trained.model(block[None, :-1])[0], block[1:], reduction="none"))
    return torch.cat(losses).mean().item()


def parse_metrics(out: str) -> dict[str, float]:
    return {name: float(re.search(rf"{name}\s+([\d.]+)", out)[1]) for name in ("loss", "perplexity", "bits")}


def test_the_metrics_of_the_validation_split_are_those_of_metrics_json(run_cli, finished):
    outcome = run_cli("evaluate", f"run={finished}")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((finished / "metrics.json").read_text())
    printed = parse_metrics(outcome.out)
    assert printed["loss"] == pytest.approx(metrics["val_loss"], abs=1e-4)
    assert printed["bits"] == pytest.approx(metrics["val_bpc"], abs=1e-4)
    assert printed["perplexity"] == pytest.approx(metrics["val_perplexity"], rel=1e-3)


def test_val_loss_is_the_loss_of_the_best_checkpoint_on_the_last_tenth_of_the_text(finished, text):
    trained = chargpt.load(finished)
    last_tenth = text[int(0.9 * len(text)) :]
    recorded = json.loads((finished / "metrics.json").read_text())["val_loss"]
    assert mean_loss(trained.model, trained.tokenizer.encode(last_tenth), 16384) == pytest.approx(recorded, abs=1e-5)
    assert reference_loss(trained, last_tenth) == pytest.approx(recorded, abs=1e-5)


def test_a_checkpoint_without_validation_tokens_in_its_config_can_be_evaluated(run_cli, finished, tmp_path):
    content = torch_file.read(finished / "checkpoints" / "best.ckpt")
    del content["chargpt"]["config"]["data"]["validation_tokens"]
    torch_file.save(content, tmp_path / "older.ckpt")
    outcome = run_cli("evaluate", f"run={tmp_path / 'older.ckpt'}")
    assert outcome.code == 0, outcome.err
    assert parse_metrics(outcome.out) == parse_metrics(run_cli("evaluate", f"run={finished}").out)


def test_another_text_is_evaluated_completely_with_the_vocabulary_of_the_model(run_cli, finished, tmp_path):
    text = "What is the king to love.\n" * 5
    (tmp_path / "other.txt").write_text(text)
    outcome = run_cli("evaluate", f"run={finished}", "data=text_file", "data.path=other.txt", "split=all")
    assert outcome.code == 0, outcome.err
    expected = reference_loss(chargpt.load(finished), text)
    assert parse_metrics(outcome.out)["loss"] == pytest.approx(expected, abs=1e-4)
    assert parse_metrics(outcome.out)["bits"] == pytest.approx(expected / math.log(2), abs=1e-4)
    assert f"{len(text) - 1} predictions" in outcome.out


@pytest.mark.parametrize("tokens_per_pass", [1, 16, 100, 10**6])
def test_the_loss_does_not_depend_on_tokens_per_pass(finished, text, tokens_per_pass):
    trained = chargpt.load(finished)
    text = text[:333]
    loss = mean_loss(trained.model, trained.tokenizer.encode(text), tokens_per_pass)
    assert loss == pytest.approx(reference_loss(trained, text), abs=1e-5)
