"""The training step and the validation against the same sums written out."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import chargpt
from chargpt.config.instantiate import instantiate
from chargpt.data.dataloader import RandomBlockLoader
from chargpt.training.lightning_module import LanguageModeling
from tests.training import run_artifacts


@pytest.fixture(scope="module")
def odd_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that ends in what the rest does not prepare for: its last, short block is much harder."""
    path = tmp_path_factory.mktemp("odd") / "odd.txt"
    path.write_text(text[:3000] + "#" * 13)
    return path


def validation_blocks(run: Path) -> tuple[chargpt.inference.pretrained.PretrainedModel, list[torch.Tensor]]:
    """The last checkpoint's model, and the loss of each prediction of the validation text, block by block."""
    trained = chargpt.load(run / "checkpoints" / "last.ckpt")
    content = Path(trained.config["data"]["path"]).read_text()
    tokens = trained.tokenizer.encode(content[int(0.9 * len(content)) :]).long()
    size, blocks = trained.config["model"]["block_size"], []
    for start in range(0, len(tokens) - 1, size):
        block = tokens[start : start + size + 1]
        logits = trained.model(block[None, :-1])[0].double()
        blocks.append(F.cross_entropy(logits, block[1:], reduction="none"))
    return trained, blocks


def test_the_validation_loss_weighs_every_prediction_equally(run_cli, tiny, odd_text, tmp_path: Path):
    """Also where the last batch is a short block and padding (torchmetrics' MeanMetric forgot its weights)."""
    words = [f"data.path={odd_text}", "data.validation_tokens=64", "hydra.run.dir=run"]
    words += ["optimizer.lr=0.01", "trainer.max_steps=60"]  # long enough to be sure of what is wrong
    outcome = run_cli("train", *tiny, *words)
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    _, blocks = validation_blocks(run)
    assert [len(block) for block in blocks] == [16] * 18 + [13]
    batches = [torch.cat(blocks[i : i + 4]) for i in range(0, len(blocks), 4)]
    every_prediction = torch.cat(blocks).mean().item()
    every_batch = torch.stack([batch.mean() for batch in batches]).mean().item()
    assert abs(every_batch - every_prediction) > 1e-3, "this text would not show a wrong weighting"
    assert run_artifacts.metrics(run)["final_val_loss"] == pytest.approx(every_prediction, abs=1e-5)


def test_a_validation_in_one_pass_gives_the_same_loss(odd_text, run_cli, tiny, tmp_path: Path):
    words = [f"data.path={odd_text}", "data.validation_tokens=10000000", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *words, "trainer.max_steps=1").code == 0
    _, blocks = validation_blocks(tmp_path / "run")
    loss = torch.cat(blocks).mean().item()
    assert run_artifacts.metrics(tmp_path / "run")["final_val_loss"] == pytest.approx(loss, abs=1e-5)


def test_a_step_of_accumulated_passes_goes_down_the_gradient_of_their_mean(run_cli, tiny, tmp_path: Path):
    """Passes 0, 1 make step 1 and passes 2, 3 step 2: the global batches k that the contract counts."""
    words = ["model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0.0"]
    words += ["schedule=constant", "data.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.max_steps=2"]
    words += ["trainer.gradient_clip_val=null", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *words, "trainer.val_check_interval=1")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    after_1, after_2 = (run_artifacts.checkpoint(run, name) for name in ("previous", "last"))
    assert (after_1["global_step"], after_2["global_step"]) == (1, 2)
    trained, _ = validation_blocks(run)
    content = Path(trained.config["data"]["path"]).read_text()
    tokens = trained.tokenizer.encode(content[: int(0.9 * len(content))])
    passes = RandomBlockLoader(tokens, block_size=16, batch_size=2, seed=1337)

    model = instantiate(trained.config["model"], "model", vocab_size=trained.tokenizer.vocab_size)
    model.load_state_dict({k.removeprefix("model."): v for k, v in after_1["state_dict"].items()})
    losses = []
    for k in (2, 3):
        inputs, targets = passes.batch(k)
        losses.append(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.5 * p.grad)
    for name, p in model.named_parameters():
        torch.testing.assert_close(after_2["state_dict"][f"model.{name}"], p.detach(), msg=name)
    last = run_artifacts.history(run)[-1]
    assert float(last["train_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(last["grad_norm"]) == pytest.approx(norm, rel=1e-4)


def test_the_norm_that_is_told_is_that_before_clipping(run_cli, tiny, tmp_path: Path):
    limit = 0.01
    words = ["model.dropout=0.0", "optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0.0"]
    words += ["schedule=constant", f"trainer.gradient_clip_val={limit}", "trainer.log_every_n_steps=1"]
    outcome = run_cli(
        "train", *tiny, *words, "trainer.val_check_interval=1", "trainer.max_steps=2", "hydra.run.dir=run"
    )
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    before, after = (run_artifacts.checkpoint(run, name)["state_dict"] for name in ("previous", "last"))
    tied = "model.head.weight"  # the same tensor as the token embedding
    moves = [(after[k].double() - before[k].double()).square().sum().item() for k in before if k != tied]
    assert math.sqrt(sum(moves)) == pytest.approx(limit, rel=1e-3)
    assert float(run_artifacts.history(run)[-1]["grad_norm"]) > 10 * limit


def test_another_seed_gives_other_weights_other_data_and_other_dropout(run_cli, tiny, tmp_path: Path):
    for name, seed in (("one", 1), ("other", 2)):
        words = [f"seed={seed}", f"hydra.run.dir={name}", "optimizer.lr=0.0", "trainer.max_steps=2"]
        assert run_cli("train", *tiny, *words, "trainer.log_every_n_steps=1").code == 0
    one, other = (run_artifacts.checkpoint(tmp_path / name)["state_dict"] for name in ("one", "other"))
    assert run_artifacts.differences(one, other)
    one, other = (run_artifacts.history(tmp_path / name, "train_loss") for name in ("one", "other"))
    assert one[0] != other[0]
    assert one[0] != one[1], "with a learning rate of 0 only data and dropout differ between steps"


def test_samples_drawn_at_validations_disturb_nobody(run_cli, tiny, tmp_path: Path):
    """Dropout and data come from (seed, k): validating and sampling more often trains the same model."""
    often = ["trainer.val_check_interval=1", "callbacks.samples.max_new_tokens=5", "hydra.run.dir=often"]
    never = ["trainer.val_check_interval=6", "callbacks.samples.max_new_tokens=0", "hydra.run.dir=never"]
    for words in (often, never):
        assert run_cli("train", *tiny, "trainer.max_steps=6", *words).code == 0
    often, never = (run_artifacts.learned(tmp_path / name) for name in ("often", "never"))
    assert not run_artifacts.differences(often, never)


def test_lightning_still_writes_down_which_hook_a_module_is_in(run_cli, tiny, tmp_path: Path, monkeypatch):
    """`LanguageModeling.__setattr__` has a short way for this private name, set more often than all others."""
    names: Counter[str] = Counter()
    set_attribute = LanguageModeling.__setattr__

    def counted(self, name, value):
        names[name] += 1
        set_attribute(self, name, value)

    monkeypatch.setattr(LanguageModeling, "__setattr__", counted)
    assert run_cli("train", *tiny, "trainer.max_steps=2", "hydra.run.dir=run").code == 0
    assert names.most_common(1)[0][0] == "_current_fx_name"


def test_torch_still_hands_infinite_gradients_to_an_optimizer_by_this_private_name():
    """`MatrixOptimizer` and the clipping rely on it."""
    weight = torch.nn.Parameter(torch.ones(2))
    assert torch.optim.AdamW([weight], fused=True)._step_supports_amp_scaling
