"""The training step and the validation loss, compared with an explicit computation."""

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
    """A text that ends with an unseen character, so that its last, short block has a much higher loss."""
    path = tmp_path_factory.mktemp("odd") / "odd.txt"
    path.write_text(text[:3000] + "#" * 13)
    return path


def validation_losses(run: Path) -> tuple[chargpt.inference.pretrained.PretrainedModel, list[torch.Tensor]]:
    """The last checkpoint's model, and the loss of each token of the validation split, block by block."""
    trained = chargpt.load(run / "checkpoints" / "last.ckpt")
    content = Path(trained.config["data"]["path"]).read_text()
    tokens = trained.tokenizer.encode(content[int(0.9 * len(content)) :]).long()
    size, blocks = trained.config["model"]["block_size"], []
    for start in range(0, len(tokens) - 1, size):
        block = tokens[start : start + size + 1]
        logits = trained.model(block[None, :-1])[0].double()
        blocks.append(F.cross_entropy(logits, block[1:], reduction="none"))
    return trained, blocks


def test_the_validation_loss_weights_every_token_equally(run_cli, tiny, odd_text, tmp_path: Path):
    """The last batch contains a short block and padding. (torchmetrics' MeanMetric ignored its weights.)"""
    overrides = [f"data.path={odd_text}", "data.validation_tokens=64", "hydra.run.dir=run"]
    overrides += ["optimizer.lr=0.01", "trainer.max_steps=60"]  # long enough to be confident in wrong predictions
    outcome = run_cli("train", *tiny, *overrides)
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    _, blocks = validation_losses(run)
    assert [len(block) for block in blocks] == [16] * 18 + [13]
    batches = [torch.cat(blocks[i : i + 4]) for i in range(0, len(blocks), 4)]
    mean_of_tokens = torch.cat(blocks).mean().item()
    mean_of_batches = torch.stack([batch.mean() for batch in batches]).mean().item()
    assert abs(mean_of_batches - mean_of_tokens) > 1e-3, "this text cannot detect a wrong weighting"
    assert run_artifacts.metrics(run)["final_val_loss"] == pytest.approx(mean_of_tokens, abs=1e-5)


def test_validation_in_a_single_batch_gives_the_same_loss(odd_text, run_cli, tiny, tmp_path: Path):
    overrides = [f"data.path={odd_text}", "data.validation_tokens=10000000", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *overrides, "trainer.max_steps=1").code == 0
    _, blocks = validation_losses(tmp_path / "run")
    loss = torch.cat(blocks).mean().item()
    assert run_artifacts.metrics(tmp_path / "run")["final_val_loss"] == pytest.approx(loss, abs=1e-5)


def test_gradient_accumulation_follows_the_gradient_of_the_mean_loss(run_cli, tiny, tmp_path: Path):
    """Step 1 uses the global batches k = 0 and 1, step 2 the batches 2 and 3."""
    overrides = ["model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0.0"]
    overrides += ["schedule=constant", "data.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.max_steps=2"]
    overrides += ["trainer.gradient_clip_val=null", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *overrides, "trainer.val_check_interval=1")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    after_1, after_2 = (run_artifacts.checkpoint(run, name) for name in ("previous", "last"))
    assert (after_1["global_step"], after_2["global_step"]) == (1, 2)
    trained, _ = validation_losses(run)
    content = Path(trained.config["data"]["path"]).read_text()
    tokens = trained.tokenizer.encode(content[: int(0.9 * len(content))])
    loader = RandomBlockLoader(tokens, block_size=16, batch_size=2, seed=1337)

    model = instantiate(trained.config["model"], "model", vocab_size=trained.tokenizer.vocab_size)
    model.load_state_dict({k.removeprefix("model."): v for k, v in after_1["state_dict"].items()})
    losses = []
    for k in (2, 3):
        inputs, targets = loader.batch(k)
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


def test_the_logged_gradient_norm_is_that_before_clipping(run_cli, tiny, tmp_path: Path):
    limit = 0.01
    overrides = ["model.dropout=0.0", "optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0.0"]
    overrides += ["schedule=constant", f"trainer.gradient_clip_val={limit}", "trainer.log_every_n_steps=1"]
    outcome = run_cli(
        "train", *tiny, *overrides, "trainer.val_check_interval=1", "trainer.max_steps=2", "hydra.run.dir=run"
    )
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    before, after = (run_artifacts.checkpoint(run, name)["state_dict"] for name in ("previous", "last"))
    tied = "model.head.weight"  # the same tensor as the token embedding
    changes = [(after[k].double() - before[k].double()).square().sum().item() for k in before if k != tied]
    assert math.sqrt(sum(changes)) == pytest.approx(limit, rel=1e-3)
    assert float(run_artifacts.history(run)[-1]["grad_norm"]) > 10 * limit


def test_clipping_by_value_limits_each_element(run_cli, tiny, tmp_path: Path):
    limit = 0.001
    overrides = ["model.dropout=0.0", "optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0.0"]
    overrides += ["schedule=constant", f"trainer.gradient_clip_val={limit}", "trainer.gradient_clip_algorithm=value"]
    overrides += ["trainer.log_every_n_steps=1", "trainer.val_check_interval=1", "trainer.max_steps=2"]
    outcome = run_cli("train", *tiny, *overrides, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    before, after = (run_artifacts.checkpoint(run, name)["state_dict"] for name in ("previous", "last"))
    changes = torch.cat([(after[k] - before[k]).abs().flatten() for k in before])
    assert changes.max().item() == pytest.approx(limit, rel=1e-3)
    assert (changes > 0.99 * limit).sum() > 10
    assert float(run_artifacts.history(run)[-1]["grad_norm"]) > 10 * limit


def test_the_seed_determines_weights_data_and_dropout(run_cli, tiny, tmp_path: Path):
    for name, seed in (("one", 1), ("other", 2)):
        overrides = [f"seed={seed}", f"hydra.run.dir={name}", "optimizer.lr=0.0", "trainer.max_steps=2"]
        assert run_cli("train", *tiny, *overrides, "trainer.log_every_n_steps=1").code == 0
    one, other = (run_artifacts.checkpoint(tmp_path / name)["state_dict"] for name in ("one", "other"))
    assert run_artifacts.differences(one, other)
    one, other = (run_artifacts.history(tmp_path / name, "train_loss") for name in ("one", "other"))
    assert one[0] != other[0]
    assert one[0] != one[1], "with a learning rate of 0 only data and dropout differ between steps"


def test_validations_and_samples_do_not_affect_training(run_cli, tiny, tmp_path: Path):
    """Dropout and data depend only on (seed, k)."""
    often = ["trainer.val_check_interval=1", "callbacks.samples.max_new_tokens=5", "hydra.run.dir=often"]
    never = ["trainer.val_check_interval=6", "callbacks.samples.max_new_tokens=0", "hydra.run.dir=never"]
    for overrides in (often, never):
        assert run_cli("train", *tiny, "trainer.max_steps=6", *overrides).code == 0
    often, never = (run_artifacts.training_state(tmp_path / name) for name in ("often", "never"))
    assert not run_artifacts.differences(often, never)


def test_lightning_still_sets_the_private_attribute_with_a_fast_path(run_cli, tiny, tmp_path: Path, monkeypatch):
    """`LanguageModeling.__setattr__` has a fast path for the attribute that is set most often."""
    names: Counter[str] = Counter()
    set_attribute = LanguageModeling.__setattr__

    def counted(self, name, value):
        names[name] += 1
        set_attribute(self, name, value)

    monkeypatch.setattr(LanguageModeling, "__setattr__", counted)
    assert run_cli("train", *tiny, "trainer.max_steps=2", "hydra.run.dir=run").code == 0
    assert names.most_common(1)[0][0] == "_current_fx_name"


def test_torch_still_marks_optimizers_that_unscale_gradients_by_this_private_name():
    """`MatrixOptimizer` and gradient clipping rely on it."""
    weight = torch.nn.Parameter(torch.ones(2))
    assert torch.optim.AdamW([weight], fused=True)._step_supports_amp_scaling
