"""Modules of other projects as language models: any `nn.Module`, nanoGPT's `GPT`, and Hugging Face's GPT-2."""

import contextlib
import importlib
import io
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chargpt.data.dataloader import RandomBlockLoader
from chargpt.data.tokenizer import CharTokenizer
from chargpt.errors import UserError
from chargpt.inference.generate import generate
from chargpt.model.adapters import HuggingFace, ModuleAdapter, NanoGPT
from chargpt.optim.muon import muon
from chargpt.utils.seeding import fold_in
from tests.training.run_artifacts import history

V, T, C = 11, 8, 4
TOKENS_BT = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    def __init__(self, bidirectional: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(V, C)
        self.gru = nn.GRU(C, C, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(2 * C if bidirectional else C, V)

    def forward(self, tokens_BT):
        return self.head(self.gru(self.embedding(tokens_BT))[0])


class Tied(nn.Module):
    """Has as many channels as tokens, so that a hidden layer has the shape of the head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, V)
        self.hidden = nn.Linear(V, V)
        self.norm = nn.LayerNorm(V)
        self.head = nn.Linear(V, V, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT):
        return self.head(self.norm(self.hidden(self.embedding(tokens_BT))))


@dataclass
class Config:
    vocab_size: int = V
    block_size: int = T


class LikeNanoGPT(nn.Module):
    """Returns (logits, loss): without targets, the logits of the last position only."""

    def __init__(self, config: Config):
        super().__init__()
        self.module = Tied()
        print("number of parameters: 0.00M")

    def forward(self, tokens_BT, targets_BT=None):
        logits_BTV = self.module(tokens_BT)
        if targets_BT is None:
            return logits_BTV[:, [-1]], None
        return logits_BTV, F.cross_entropy(logits_BTV.view(-1, V), targets_BT.view(-1), ignore_index=-1)


def adapt(module: nn.Module) -> ModuleAdapter:
    return ModuleAdapter(module, V, T).eval()


def test_the_logits_are_those_of_the_module():
    module = Recurrent()
    assert torch.equal(adapt(module)(TOKENS_BT), module(TOKENS_BT))


def test_without_a_kv_cache_the_context_is_recomputed():
    model = adapt(Recurrent())
    assert model.new_cache(1) is None
    sampled = torch.cat([*generate(model, TOKENS_BT[0, :3], 12, temperature=0, window="exact")])
    text = TOKENS_BT[0, :3]
    for _ in range(12):
        text = torch.cat((text, model(text[None, -T:])[0, -1:].argmax(-1)))
    assert sampled.tolist() == text[3:].tolist()


def test_int8_is_refused():
    with pytest.raises(UserError, match="quantize=int8: it supports only"):
        generate(adapt(Recurrent()), TOKENS_BT[0], 1, quantize="int8")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_is_causal(bidirectional):
    assert adapt(Recurrent(bidirectional)).is_causal() == (not bidirectional)


def test_the_matrices_for_muon_are_those_between_embedding_and_head():
    module = Recurrent()
    matrices = [p for p, _ in adapt(module).matrix_parameters()]
    assert [id(p) for p in matrices] == [id(module.gru.weight_ih_l0), id(module.gru.weight_hh_l0)]
    tied = Tied()
    assert [id(p) for p, _ in adapt(tied).matrix_parameters()] == [id(tied.hidden.weight)]
    groups = muon(adapt(tied), lr=0.02).param_groups
    assert {group["maps"]: len(group["params"]) for group in groups} == {1: 1, 0: 4}


def test_unused_parameters():
    module = Recurrent()
    assert adapt(module).unused_parameters() == []
    module.other = nn.Linear(1, 1)
    module.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    assert adapt(module).unused_parameters() == ["module.other.weight", "module.other.bias"]
    assert all(p.grad is None for p in module.parameters())


def test_flops_of_a_gru_equal_a_count_by_hand():
    multiplications = 2 * 3 * C * C + C * V  # three gates of input and state, and the head
    assert adapt(Recurrent()).flops_per_token() == 3 * 2 * multiplications


def test_input_embeddings_are_the_only_table_of_tokens():
    module = Recurrent()
    assert adapt(module).input_embeddings() is module.embedding.weight
    module.other = nn.Embedding(V, C)
    with pytest.raises(NotImplementedError, match="Recurrent has 2 embedding tables of tokens"):
        adapt(module).input_embeddings()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: (x, None), r"returns tuple \(use chargpt.model.adapters.NanoGPT\)"),
        (lambda x: type("Output", (), {"logits": x})(), r"returns Output \(use chargpt.model.adapters.HuggingFace\)"),
        (lambda x: x[:, [-1]], rf"returns shape \(1, 1, {V}\), not logits of shape \(1, {T}, {V}\)"),
        (lambda x: 5, "returns int, not logits"),
        (lambda x: x @ x, "a forward pass with 8 tokens fails"),
    ],
)
def test_another_signature_is_reported_with_its_adapter(output, message):
    class Wrapped(Recurrent):
        def forward(self, tokens_BT):
            return output(super().forward(tokens_BT))

    with pytest.raises(ValueError, match=message):
        adapt(Wrapped()).smoke_test()


def test_nanogpt_is_asked_for_the_logits_of_all_positions(capsys):
    model = NanoGPT(LikeNanoGPT, Config(), V, T).eval()
    tokens_BT = torch.arange(3 * T).reshape(3, T).remainder(V).T  # not contiguous
    logits_BTV = model(tokens_BT)
    assert logits_BTV.shape == (T, 3, V)
    assert torch.equal(logits_BTV, model.module.module(tokens_BT))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "number of parameters: 0.00M\n")  # sample.py prints only text


def test_the_loss_of_a_token_with_the_number_of_an_ignore_index_counts():
    """nanoGPT ignores targets of -1 and Hugging Face those of -100: neither is used."""
    model = NanoGPT(LikeNanoGPT, Config(), V, T).eval()
    targets_BT = TOKENS_BT.masked_fill(TOKENS_BT == 3, -100)
    loss = F.cross_entropy(model(TOKENS_BT).flatten(0, 1), targets_BT.flatten())
    kept = targets_BT.flatten() != -100
    assert 0 < kept.sum() < kept.numel()
    expected = F.cross_entropy(model(TOKENS_BT).flatten(0, 1)[kept], TOKENS_BT.flatten()[kept])
    torch.testing.assert_close(loss, expected)


@pytest.fixture
def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=V, n_positions=T, n_layer=2, n_head=2, n_embd=C, bos_token_id=None)
    return HuggingFace(transformers.GPT2LMHeadModel, config, V, T).eval()


def test_gpt2_of_hugging_face(gpt2):
    """FLOPs by hand, causality, Muon's matrices with a tied head, and tied weights in an export."""
    gpt2.smoke_test()
    assert gpt2.is_causal()
    per_layer = 12 * C * C + 2 * T * C  # 3 + 1 + 4 + 4 matrices; queries with keys, weights with values
    assert gpt2.flops_per_token() == 3 * 2 * (2 * per_layer + C * V)
    assert len(gpt2.matrix_parameters()) == 2 * 4
    assert gpt2.input_embeddings() is gpt2.module.transformer.wte.weight
    assert [*gpt2.tied_weight_names()] == ["module.lm_head.weight"]
    assert gpt2.new_cache(1) is None


def test_a_downloaded_attention_is_refused():
    class DownloadedConfig:
        _attn_implementation = "someone/kernel"

    with pytest.raises(UserError, match="it would be downloaded; use eager or sdpa"):
        HuggingFace(Recurrent, DownloadedConfig(), V, T)


@pytest.fixture
def nanogpt(tmp_path, monkeypatch):
    """The module model.py of the nanoGPT checkout in the environment variable NANOGPT, copied to the current folder."""
    if "NANOGPT" not in os.environ:
        pytest.skip("set NANOGPT to a checkout of https://github.com/karpathy/nanoGPT")
    shutil.copy(Path(os.environ["NANOGPT"]) / "model.py", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("model")
    del sys.modules["model"]


def test_nanogpt_itself(nanogpt):
    config = nanogpt.GPTConfig(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=C, bias=False)
    with contextlib.redirect_stderr(io.StringIO()):
        model = NanoGPT(nanogpt.GPT, config, V, T).eval()
    model.smoke_test()
    assert model.is_causal()
    assert model.flops_per_token() == 3 * 2 * (2 * (12 * C * C + 2 * T * C) + C * V)
    assert len(model.matrix_parameters()) == 2 * 4
    inputs_BT, targets_BT = TOKENS_BT[:, :-1], TOKENS_BT[:, 1:]
    _, loss = model.module(inputs_BT, targets_BT.contiguous())
    torch.testing.assert_close(F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten()), loss)


@pytest.fixture
def train(run_cli, tmp_path, tiny):
    """`train("nanogpt", dropout, ...)`: trains 5 steps of an adapted model by torch's AdamW."""

    def train(name: str, dropout: float, *overrides: str):
        (tmp_path / "my_conf" / "optimizer").mkdir(parents=True)
        (tmp_path / "my_conf" / "optimizer" / "plain.yaml").write_text("_target_: torch.optim.AdamW\nlr: 1.0e-3\n")
        settings = [setting for setting in tiny if not setting.startswith("model")]
        settings += [f"model=adapted_{name}", "model.block_size=16", "recipe=default", "optimizer=plain"]
        settings += ["schedule=constant", "trainer.gradient_clip_val=null", "trainer.max_steps=5"]
        settings += [f"model.config.{key}=2" for key in ("n_layer", "n_head")] + ["model.config.n_embd=16"]
        keys = ("dropout",) if name == "nanogpt" else ("resid_pdrop", "embd_pdrop", "attn_pdrop")
        settings += [f"model.config.{key}={dropout}" for key in keys]
        settings += ["trainer.log_every_n_steps=1", "data.batch_size=4", "hydra.run.dir=outputs/run"]
        outcome = run_cli("train", "--config-dir=my_conf", *settings, *overrides)
        assert outcome.code == 0, outcome.err
        return [float(row["train_loss"]) for row in history(tmp_path / "outputs" / "run")]

    return train


def plain_losses(text: str, make_module, loss) -> list[float]:
    """The losses of a PyTorch loop on the same batches."""
    tokens_N = CharTokenizer.from_text(text).encode(text[: int(0.9 * len(text))])
    batches = RandomBlockLoader(tokens_N, block_size=16, batch_size=4, seed=1337)
    torch.manual_seed(fold_in(1337))
    module = make_module(len(set(text)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for k in range(5):
        losses.append(loss(module, *(tokens_BT.contiguous() for tokens_BT in batches.batch(k))))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def test_the_losses_of_gpt2_equal_those_of_a_plain_loop(train, text):
    transformers = pytest.importorskip("transformers")
    sizes = dict(n_positions=16, n_layer=2, n_head=2, n_embd=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)

    def make(vocab_size):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocab_size, **sizes))

    def loss(module, inputs_BT, targets_BT):
        return F.cross_entropy(module(inputs_BT).logits.flatten(0, 1), targets_BT.flatten())

    assert train("huggingface", 0.0) == pytest.approx(plain_losses(text, make, loss), abs=1e-5)


def test_the_losses_of_nanogpt_equal_those_of_a_plain_loop(nanogpt, train, text):
    sizes = dict(block_size=16, n_layer=2, n_head=2, n_embd=16, bias=False)

    def make(vocab_size):
        return nanogpt.GPT(nanogpt.GPTConfig(vocab_size=vocab_size, **sizes))

    losses = plain_losses(text, make, lambda module, inputs_BT, targets_BT: module(inputs_BT, targets_BT)[1])
    assert train("nanogpt", 0.0) == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("name", ["nanogpt", "huggingface"])
def test_an_adapted_model_trains_with_dropout_and_is_loaded_only_with_trust(request, train, run_cli, tmp_path, name):
    package = "model" if name == "nanogpt" else "transformers"
    pytest.importorskip("transformers") if name == "huggingface" else request.getfixturevalue("nanogpt")
    assert all(map(math.isfinite, train(name, 0.1)))
    refused = run_cli("train", "resume=outputs/run", "trainer.max_steps=7")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"add trust=[{package}]" in refused.err
    assert run_cli("train", "resume=outputs/run", "trainer.max_steps=7", f"trust={package}").code == 0
    sampled = run_cli("sample", "run=outputs/run", "max_new_tokens=20", f"trust={package}")
    assert (sampled.code, len(sampled.out)) == (0, 1 + 20 + 1), sampled.err
    refused = run_cli("sample", "run=outputs/run", "quantize=int8", f"trust={package}")
    assert (refused.code, refused.err.count("quantize=int8: it supports only Transformers")) == (2, 1)
