# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Let's build GPT: a walkthrough
#
# The argument of the lecture ["Let's build GPT: from scratch, in code, spelled
# out"](https://www.youtube.com/watch?v=kCc8FmEb1nY), in a notebook that runs in about a minute on a CPU. What the
# lecture derives by hand is derived by hand here, and then compared with the package `chargpt`; the rest is
# imported. Each `assert` verifies a claim when you run the notebook.
#
# Letters in shapes: B batch, T time (positions in a block), C channels, H heads, D head size, V vocabulary.

# %%
import math
import tempfile
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import sentencepiece
import torch
from torch import nn
from torch.nn import functional as F

from chargpt.analysis.plots import plot_attention
from chargpt.analysis.predictions import attention_maps
from chargpt.analysis.token_labels import make_visible
from chargpt.data.corpus import TinyShakespeare
from chargpt.data.dataloader import EvalBlockLoader, RandomBlockLoader
from chargpt.data.tokenizer import CharTokenizer
from chargpt.inference.generate import generate
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.bigram import Bigram
from chargpt.model.feed_forward import FeedForward
from chargpt.model.initialization import torch_default
from chargpt.model.position import Learned
from chargpt.model.transformer import Transformer

torch.manual_seed(1337)
plt.rcParams["figure.dpi"] = 100

# %% [markdown]
# ## 1. The text
#
# One file with about a million characters. A language model predicts the next character from the preceding ones.

# %%
text = TinyShakespeare().read()
print(f"{len(text):,} characters. The first 200:\n")
print(text[:200])

# %%
vocabulary = sorted(set(text))
print(f"{len(vocabulary)} characters:", make_visible("".join(vocabulary)))
assert len(text) == 1_115_394
assert len(vocabulary) == 65

# %% [markdown]
# ## 2. Characters to numbers
#
# The simplest tokenizer maps each character to its index in the sorted vocabulary. By hand, this takes two
# dictionaries; the package's `CharTokenizer` encodes a hundred megabytes in seconds.

# %%
stoi = {character: i for i, character in enumerate(vocabulary)}
itos = dict(enumerate(vocabulary))


def encode(string: str) -> list[int]:
    return [stoi[character] for character in string]


def decode(tokens: list[int]) -> str:
    return "".join(itos[i] for i in tokens)


tokenizer = CharTokenizer.from_text(text)
print(encode("hii there"))
assert decode(encode("hii there")) == "hii there"
assert tokenizer.encode("hii there").tolist() == encode("hii there")

# %% [markdown]
# There is a trade-off: a larger vocabulary gives a shorter sequence. A *subword* tokenizer (here SentencePiece's
# byte-pair encoding, trained on this text) merges characters that often occur together into one token. GPT-2's
# tokenizer has 50,257 tokens. The lecture and this project use characters, because a small vocabulary keeps the model
# small and easy to inspect.

# %%
line = "But soft, what light through yonder window breaks?"
sizes, tokens_per_character = [65], [1.0]
with tempfile.TemporaryDirectory() as folder:
    corpus_file = Path(folder) / "corpus.txt"
    corpus_file.write_text(text)
    for size in (128, 256, 512, 1024, 2048, 4096):
        prefix = f"{folder}/bpe{size}"
        settings = {"input": str(corpus_file), "model_prefix": prefix, "vocab_size": size, "model_type": "bpe"}
        sentencepiece.SentencePieceTrainer.train(**settings, minloglevel=2)
        subwords = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
        sizes.append(size)
        tokens_per_character.append(len(subwords.encode(text)) / len(text))
        if size in (256, 4096):
            print(f"vocabulary {size:>5}:", " ".join(subwords.encode(line, out_type=str)))
print("vocabulary    65:", " ".join(make_visible(line)))

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.semilogx(sizes, [len(text) * ratio for ratio in tokens_per_character], marker="o", base=2)
axes.set_xlabel("vocabulary size")
axes.set_ylabel("tokens in the corpus")
axes.set_title("A larger vocabulary gives a shorter sequence")
axes.grid(alpha=0.3)
assert tokens_per_character == sorted(tokens_per_character, reverse=True)

# %% [markdown]
# ## 3. Nine characters, eight examples
#
# The first 90 % are for training. The rest shows whether the model has learned Shakespeare or memorized *this file*.
# The model does not see the complete text at once but *blocks* of it. Nine consecutive characters contain eight
# examples, with contexts of one to eight characters, so the model learns to continue a context of any of these lengths.

# %%
tokens_N = tokenizer.encode(text)
split = int(0.9 * len(tokens_N))
train_N, val_N = tokens_N[:split], tokens_N[split:]

block_size = 8
block = train_N[: block_size + 1].tolist()
for t in range(block_size):
    context, target = block[: t + 1], block[t + 1]
    print(f"after {make_visible(decode(context)):<9} comes {make_visible(decode([target]))!r}")

# %% [markdown]
# ## 4. Batches
#
# Processors are efficient if they process many blocks at once. The blocks of a batch are independent. In the package,
# batch k is a pure function of (seed, k), so an interrupted run resumes with the same batches.

# %%
batches = RandomBlockLoader(train_N, block_size, batch_size=4, seed=1337)
inputs_BT, targets_BT = batches.batch(0)
print("inputs", tuple(inputs_BT.shape))
for row in inputs_BT:
    print("  ", make_visible(decode(row.tolist())))
print("targets: the same, shifted by one position")
for row in targets_BT:
    print("  ", make_visible(decode(row.tolist())))
assert inputs_BT[:, 1:].equal(targets_BT[:, :-1])

# %% [markdown]
# ## 5. The bigram model
#
# The smallest trainable model: a table with one row per character, which contains the logits (the scores
# before the softmax) of the next character. Its context is one character.
#
# What should the initial loss be? Without any knowledge, each character has probability 1/65, and the loss is
# $-\ln(1/65) = 4.174$. The lecture's model starts at 4.87 instead. Its table is drawn from N(0, 1), so its initial
# predictions are confident and wrong instead of uniform. On average, $E[\ln\sum e^{x}] - E[x] \approx \ln V + 1/2$,
# which is 4.67; the loss of the lecture's table on one batch of four blocks happened to be slightly higher.

# %%
small_batches = RandomBlockLoader(train_N, 8, batch_size=4, seed=0)


def loss_of(model: nn.Module, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())


with torch.no_grad():
    losses_std_1 = torch.tensor([loss_of(Bigram(65, std=1.0), *small_batches.batch(k)).item() for k in range(300)])
    loss_std_002 = loss_of(Bigram(65, std=0.02), *small_batches.batch(0)).item()

figure, axes = plt.subplots(figsize=(6, 3))
axes.hist(losses_std_1.numpy(), bins=30, color="tab:blue", alpha=0.7, label="300 tables from N(0, 1), one batch each")
axes.axvline(math.log(65), color="tab:green", label="ln 65 = 4.174")
axes.axvline(4.87, color="tab:red", linestyle="--", label="the lecture's table: 4.87")
axes.set_xlabel("initial loss")
axes.legend(fontsize=8)
print(
    f"N(0, 1): {losses_std_1.mean():.3f} on average; N(0, 0.02): {loss_std_002:.3f}; ln 65 + 1/2 = {math.log(65) + 0.5:.3f}"
)
assert abs(losses_std_1.mean().item() - (math.log(65) + 0.5)) < 0.05
assert losses_std_1.min() < 4.87 < losses_std_1.max()
assert abs(loss_std_002 - math.log(65)) < 0.01

# %% [markdown]
# The training loop has four steps: draw a batch, compute the loss, compute the gradient, update the parameters.
# `python train.py` does the same, with everything else that a long run needs.


# %%
def train(model: nn.Module, steps: int, lr: float, block_size: int = 8, batch_size: int = 32) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    losses = []
    batches = RandomBlockLoader(train_N, block_size, batch_size, seed=1337)
    for _, (inputs_BT, targets_BT) in zip(range(steps), batches, strict=False):
        loss = loss_of(model, inputs_BT, targets_BT)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def validation_loss(model: nn.Module) -> float:
    """Mean over the complete validation split; each prediction counts once."""
    blocks = EvalBlockLoader(val_N, model.block_size, 1024)
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item() for x, y in blocks]
    return sum(losses) / (len(val_N) - 1)


def sample(model: nn.Module, length: int = 150) -> str:
    start_T = torch.zeros(1, dtype=torch.long)  # a line break
    return tokenizer.decode(torch.cat(list(generate(model.eval(), start_T, length, seed=3))))


torch.manual_seed(1337)
bigram = Bigram(65)
initial_sample = sample(bigram)
bigram_losses = train(bigram, steps=4000, lr=1e-2)
bigram_val = validation_loss(bigram)
print("BEFORE\n" + initial_sample)
print(f"\nAFTER 4000 steps: validation loss {bigram_val:.3f}\n" + sample(bigram))
assert bigram_val < 2.55

# %%
figure, axes = plt.subplots(figsize=(6, 3))
smoothed = torch.tensor(bigram_losses).view(-1, 50).mean(1)
axes.plot(range(25, 4000, 50), smoothed)
axes.axhline(math.log(65), color="tab:green", linestyle=":", label="ln 65")
axes.set_xlabel("steps")
axes.set_ylabel("training loss")
axes.legend()
axes.set_title("The bigram model")
plt.show()

# %% [markdown]
# The model has learned only which letters follow which, because its context is one character. The tokens need to
# communicate.
#
# ## 6. The mathematical trick: averages over the past, in three versions
#
# The weakest form of communication: each position takes the mean of all positions up to itself. Version 1 uses loops.

# %%
torch.manual_seed(1337)
B, T, C = 4, 8, 2
x_BTC = torch.randn(B, T, C)


def by_loops(x_BTC: torch.Tensor) -> torch.Tensor:
    averages_BTC = torch.zeros_like(x_BTC)
    for b in range(x_BTC.shape[0]):
        for t in range(x_BTC.shape[1]):
            averages_BTC[b, t] = x_BTC[b, : t + 1].mean(dim=0)
    return averages_BTC


by_loops(x_BTC)[0]

# %% [markdown]
# Version 2: multiplication by a lower-triangular matrix whose rows sum to 1 does the same for all positions at once.


# %%
def by_matrix(x_BTC: torch.Tensor) -> torch.Tensor:
    T = x_BTC.shape[1]
    weights_TT = torch.tril(torch.ones(T, T))
    weights_TT = weights_TT / weights_TT.sum(dim=1, keepdim=True)
    return weights_TT @ x_BTC


weights_TT = torch.tril(torch.ones(4, 4))
weights_TT / weights_TT.sum(dim=1, keepdim=True)

# %% [markdown]
# Version 3: the same weights as a softmax. All scores are 0, those of future positions minus infinity. Attention uses
# this version, because the scores need not be 0: they can *depend on the data*, so that each position selects which
# others to average.


# %%
def by_softmax(x_BTC: torch.Tensor) -> torch.Tensor:
    T = x_BTC.shape[1]
    scores_TT = torch.zeros(T, T).masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
    return F.softmax(scores_TT, dim=-1) @ x_BTC


torch.testing.assert_close(by_loops(x_BTC), by_matrix(x_BTC), atol=1e-6, rtol=0)
torch.testing.assert_close(by_loops(x_BTC), by_softmax(x_BTC), atol=1e-6, rtol=0)

large_BTC = torch.randn(32, 64, 32)
for version in (by_loops, by_matrix, by_softmax):
    start = time.perf_counter()
    for _ in range(3):
        version(large_BTC)
    print(f"{version.__name__:<11} {(time.perf_counter() - start) / 3 * 1e3:8.2f} ms for 32 blocks of 64 positions")

# %% [markdown]
# ## 7. Self-attention
#
# Each position emits a *query* (what it looks for), a *key* (what it contains) and a *value* (what it passes on if a
# query matches). The score of a pair is the dot product of query and key; the rest is version 3.

# %%
torch.manual_seed(1337)
B, T, C, D = 4, 8, 32, 16
x_BTC = torch.randn(B, T, C)
key, query, value = (nn.Linear(C, D, bias=False) for _ in range(3))

k_BTD, q_BTD, v_BTD = key(x_BTC), query(x_BTC), value(x_BTC)
scores_BTT = q_BTD @ k_BTD.transpose(-2, -1) * D**-0.5
scores_BTT = scores_BTT.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
attention_BTT = F.softmax(scores_BTT, dim=-1)
output_BTD = attention_BTT @ v_BTD

torch.set_printoptions(precision=2, sci_mode=False)
print(attention_BTT[0].detach())
assert (attention_BTT.sum(-1) - 1).abs().max() < 1e-6

# %% [markdown]
# The package's `CausalSelfAttention` computes queries, keys and values of all heads in one product and passes them to
# torch's fused kernel, which never stores the T x T matrix. With the same weights, the results are equal.

# %%
attention = CausalSelfAttention(C, n_head=2, projection=False)
head_0 = slice(0, D)  # channels of the first of two heads
with torch.no_grad():
    for i, linear in enumerate((query, key, value)):
        attention.qkv_proj.weight[i * C : i * C + D] = linear.weight
torch.testing.assert_close(attention(x_BTC)[..., head_0], output_BTD, atol=1e-6, rtol=1e-5)
torch.testing.assert_close(attention.attention_weights(x_BTC)[:, 0], attention_BTT, atol=1e-6, rtol=1e-5)
print("one head by hand = the package's attention")

# %% [markdown]
# What does a trained head attend to? The next cell trains a model with one layer, one head, token and position
# embeddings of 32 channels and a context of 32 for a quarter of a minute, and plots its attention weights on one sentence.
# (`python visualize.py run=... text=...` plots them for any model.)

# %%
lecture_components = {
    "attention": partial(CausalSelfAttention, projection=False),
    "position": Learned,
    "norm": lambda channels: nn.Identity(),
    "feed_forward": None,
    "initialization": torch_default,
    "residual": False,
    "final_norm": False,
}
torch.manual_seed(1337)
one_head = Transformer(65, block_size=32, n_layer=1, n_head=1, n_embd=32, dropout=0.0, **lecture_components)
train(one_head, steps=2500, lr=3e-3, block_size=32)
print(f"one head: {validation_loss(one_head):.3f}, the bigram table: {bigram_val:.3f}")
assert validation_loss(one_head) < bigram_val

sentence = "But soft, what light through yon"
(maps_HTT,) = attention_maps(one_head.eval(), tokenizer.encode(sentence))
plot_attention(maps_HTT, list(make_visible(sentence)), "One head: attention of each character to those before it")

# %% [markdown]
# ## 8. Why the scores are divided by the square root of the head size
#
# If queries and keys have variance 1, their dot product has variance D. A softmax of large numbers is sharp: nearly
# all its weight is on the largest, so that each position attends to only one other, and the others get almost no gradient.

# %%
torch.manual_seed(0)
head_size = 64
q_TD, k_TD = torch.randn(1000, head_size), torch.randn(1000, head_size)
raw_variance = (q_TD @ k_TD.T).var().item()
scaled_variance = (q_TD @ k_TD.T * head_size**-0.5).var().item()
print(f"variance of the scores: {raw_variance:.1f} raw, {scaled_variance:.2f} scaled")
assert abs(raw_variance / head_size - 1) < 0.1
assert abs(scaled_variance - 1) < 0.1

scores_8 = torch.randn(8)
figure, panels = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
for panel, factor in zip(panels, (1, math.sqrt(16), math.sqrt(256)), strict=True):
    weights_8 = F.softmax(scores_8 * factor, dim=0)
    panel.bar(range(8), weights_8)
    panel.set_title(f"scores x {factor:.0f} (head size {factor**2:.0f}, unscaled)", fontsize=8)
    panel.set_xlabel("position")
panels[0].set_ylabel("weight")
figure.suptitle("The same scores with increasing scale")
figure.tight_layout()

# %% [markdown]
# ## 9. Six notes on attention
#
# 1. **Attention is a communication mechanism**: positions are nodes of a directed graph, and each aggregates a weighted sum
#    from the nodes that point to it. In a language model these are the node itself and the nodes before it.
# 2. **It has no notion of space.** It acts on a set of vectors: if they are shuffled, the output is shuffled in the same
#    way. That is why positions are added to the embeddings.

# %%
order = torch.randperm(T)


def bidirectional_attention(x_BTC: torch.Tensor) -> torch.Tensor:
    scores_BTT = query(x_BTC) @ key(x_BTC).transpose(-2, -1) * D**-0.5
    return F.softmax(scores_BTT, dim=-1) @ value(x_BTC)


torch.testing.assert_close(bidirectional_attention(x_BTC)[:, order], bidirectional_attention(x_BTC[:, order]))
print("shuffled in, shuffled out: attention without positions is independent of the order")

# %% [markdown]
# 3. **The blocks of a batch do not communicate.** If one changes, the outputs of the others stay bit-identical.

# %%
changed_BTC = x_BTC.clone()
changed_BTC[0] += 1
assert attention(changed_BTC)[1:].equal(attention(x_BTC)[1:])
assert not attention(changed_BTC)[0].equal(attention(x_BTC)[0])

# %% [markdown]
# 4. **Encoder and decoder** differ by one line: without the mask all positions communicate (an encoder, for example for
#    sentiment analysis); with it no position depends on the future (a decoder, which can generate text). The gradient of
#    position 3 with respect to later positions is exactly 0.

# %%
probe_BTC = x_BTC.clone().requires_grad_()
attention(probe_BTC)[:, 3].sum().backward()
assert (probe_BTC.grad[:, 4:] == 0).all()
assert (probe_BTC.grad[:, :4] != 0).any()
probe_BTC = x_BTC.clone().requires_grad_()
bidirectional_attention(probe_BTC)[:, 3].sum().backward()
assert (probe_BTC.grad[:, 4:] != 0).any()
print("a decoder does not depend on the future, an encoder does")

# %% [markdown]
# 5. **Self- or cross-attention**: here queries, keys and values come from the same text. In cross-attention the keys and
#    values come from another source, for example from the French sentence that is translated.

# %%
french_BSC = torch.randn(B, 11, C)
scores_BTS = query(x_BTC) @ key(french_BSC).transpose(-2, -1) * D**-0.5
cross_BTD = F.softmax(scores_BTS, dim=-1) @ value(french_BSC)
print("queries of 8 positions, keys of 11:", tuple(scores_BTS.shape), "->", tuple(cross_BTD.shape))
assert cross_BTD.shape == (B, T, D)

# %% [markdown]
# 6. **The scores are scaled**, as section 8 has shown: their variance is 1, so the softmax is not sharp.
#
# ## 10. Multi-head attention
#
# A position can look for several things at once: the previous vowel, the start of the word, the speaker's name. So several
# small heads run in parallel, and their outputs are concatenated. Four heads of 8 channels cost as much as
# one of 32. In the package they are one matrix; split into heads, it is equal to the lecture's list.

# %%
torch.manual_seed(1337)
multi_head = CausalSelfAttention(C, n_head=4, projection=True)


def by_hand(x_BTC: torch.Tensor) -> torch.Tensor:
    outputs = []
    for head in range(4):
        rows = slice(head * 8, head * 8 + 8)
        q_BTD, k_BTD, v_BTD = (F.linear(x_BTC, multi_head.qkv_proj.weight[i * C : i * C + C][rows]) for i in range(3))
        scores_BTT = q_BTD @ k_BTD.transpose(-2, -1) * 8**-0.5
        scores_BTT = scores_BTT.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
        outputs.append(F.softmax(scores_BTT, dim=-1) @ v_BTD)
    return multi_head.out_proj(torch.cat(outputs, dim=-1))


torch.testing.assert_close(multi_head(x_BTC), by_hand(x_BTC), atol=1e-5, rtol=1e-5)
print("four heads by hand, concatenated and projected = the package's attention")

# %% [markdown]
# ## 11. Feed-forward: computation after communication
#
# Attention collects information, but does little computation on it. A small network with two layers, wide inside
# and with a ReLU, processes it at each position independently.

# %%
feed_forward = FeedForward(C, activation=nn.ReLU)
by_hand_BTC = F.linear(
    F.relu(F.linear(x_BTC, feed_forward.up_proj.weight, feed_forward.up_proj.bias)),
    feed_forward.down_proj.weight,
    feed_forward.down_proj.bias,
)
torch.testing.assert_close(feed_forward(x_BTC), by_hand_BTC, atol=1e-6, rtol=1e-5)
torch.testing.assert_close(feed_forward(x_BTC)[:, 3], feed_forward(x_BTC[:, 3:4])[:, 0], atol=1e-6, rtol=1e-5)

# %% [markdown]
# ## 12. Residual connections: why depth works
#
# Deep stacks of these blocks are hard to train: the gradient has to pass through every layer, and each one
# weakens it. With residual connections, `x = x + f(x)`, the sum passes the gradient undiminished to both terms: there is
# a direct path from the loss to the embeddings, and the blocks contribute little at first. The figure shows the gradient
# norms of an untrained model with 16 layers, by layer, with and without residual connections.


# %%
def gradient_norms(residual: bool, layers: int = 16) -> list[float]:
    torch.manual_seed(1337)
    components = lecture_components | {
        "residual": residual,
        "attention": CausalSelfAttention,
        "feed_forward": partial(FeedForward, activation=nn.ReLU),
    }
    deep = Transformer(65, block_size=32, n_layer=layers, n_head=4, n_embd=32, dropout=0.0, **components)
    loss_of(deep, *RandomBlockLoader(train_N, 32, 32, seed=0).batch(0)).backward()
    return [block.attention.qkv_proj.weight.grad.norm().item() for block in deep.blocks]


with_residuals, without = gradient_norms(True), gradient_norms(False)
figure, axes = plt.subplots(figsize=(6, 3))
axes.semilogy(range(1, 17), with_residuals, marker="o", label="with residuals")
axes.semilogy(range(1, 17), [max(norm, 1e-30) for norm in without], marker="o", label="without")
axes.set_xlabel("layer")
axes.set_ylabel("norm of the gradient")
axes.set_title("Gradient of the weights of each layer")
axes.legend()
print(f"first layer: {with_residuals[0]:.1e} with, {without[0]:.1e} without")
assert without[0] < 1e-6 * without[-1]
assert with_residuals[0] > 1e-2 * with_residuals[-1]

# %% [markdown]
# ## 13. Layer norm
#
# Batch norm gives each *column* (a channel, over the batch) mean 0 and variance 1: examples depend on each other, and
# inference requires running means. Layer norm does the same for each *row* (one position, over its channels): no
# running statistics, no difference between training and inference. The code differs by one index.


# %%
def norm(x_BC: torch.Tensor, dim: int) -> torch.Tensor:
    mean, variance = x_BC.mean(dim, keepdim=True), x_BC.var(dim, keepdim=True, unbiased=False)
    return (x_BC - mean) / torch.sqrt(variance + 1e-5)


torch.manual_seed(1337)
x_BC = torch.randn(32, 100) * 3 + 1
batch_normed_BC, layer_normed_BC = norm(x_BC, dim=0), norm(x_BC, dim=1)
print("batch norm: a column has mean {:.2f}, std {:.2f}".format(*torch.std_mean(batch_normed_BC[:, 0])[::-1]))
print("            a row    has mean {:.2f}, std {:.2f}".format(*torch.std_mean(batch_normed_BC[0])[::-1]))
print("layer norm: a column has mean {:.2f}, std {:.2f}".format(*torch.std_mean(layer_normed_BC[:, 0])[::-1]))
print("            a row    has mean {:.2f}, std {:.2f}".format(*torch.std_mean(layer_normed_BC[0])[::-1]))
torch.testing.assert_close(batch_normed_BC, nn.BatchNorm1d(100)(x_BC), atol=1e-5, rtol=1e-5)
torch.testing.assert_close(layer_normed_BC, nn.LayerNorm(100)(x_BC), atol=1e-5, rtol=1e-5)

# %% [markdown]
# The original Transformer normalizes after each sublayer; GPT-2 and later models normalize before it (pre-norm), so that the
# residual path contains no norm. The lecture does the same, with one more norm before the head.
#
# ## 14. Dropout
#
# A larger model memorizes a million characters. During training, dropout sets random activations to 0 and scales up the
# rest, so that no unit can rely on another. It trains many thinned models at once; inference uses their average.

# %%
torch.manual_seed(1337)
ones = torch.ones(100_000)
dropped = F.dropout(ones, 0.2, training=True)
print(
    f"dropout of ones: {(dropped == 0).float().mean():.3f} are 0, others {dropped.max():.2f}, mean {dropped.mean():.3f}"
)
assert abs(dropped.mean().item() - 1) < 0.01
assert F.dropout(ones, 0.2, training=False).equal(ones)

# %% [markdown]
# ## 15. Scaled up
#
# All components are in place. Only the size changes: `python train.py lecture=scaled_up`, 5000 steps, minutes on a GPU.

# %%
import csv

import hydra
from omegaconf import OmegaConf

from chargpt.config.instantiate import instantiate

HERE = Path.cwd()
with hydra.initialize_config_dir(str(HERE.parent.parent / "conf"), version_base="1.3"):
    config = hydra.compose("train", ["lecture=scaled_up"])
model_sizes = {key: config.model[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
scaled_up = instantiate(OmegaConf.to_container(config.model, resolve=True), "model", vocab_size=65)
print(model_sizes, f"batch {config.data.batch_size}, lr {config.optimizer.lr}, {config.trainer.max_steps} steps")
print(f"{scaled_up.parameter_count():,} parameters, {scaled_up.flops_per_token():,} FLOPs per character")
assert scaled_up.parameter_count() == 10_788_929

# %% [markdown]
# The measured curves of all models ([details](README.md)). The lecture's scaled-up model reaches 1.48.

# %%
curves: dict[str, dict[int, list[float]]] = {}
with (HERE / "curves.csv").open(newline="") as file:
    for point in csv.DictReader(file):
        curves.setdefault(point["model"], {}).setdefault(int(point["step"]), []).append(float(point["val_loss"]))
figure, axes = plt.subplots(figsize=(8, 4.5))
for model, losses in curves.items():
    axes.plot(list(losses), [sum(values) / len(values) for values in losses.values()], marker=".", label=model)
axes.axhline(1.48, color="black", linestyle=":", label="the lecture's scaled_up")
axes.set_xlabel("steps")
axes.set_ylabel("validation loss")
axes.legend(ncols=2, fontsize=8)
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## 16. From this model to ChatGPT
#
# First, scale. The architecture is the same except for details:

# %%
ours = {"parameters": scaled_up.parameter_count(), "tokens": len(text), "tokens as subwords": 300_000}
gpt3 = {"parameters": 175e9, "tokens": 300e9, "tokens as subwords": 300e9}
for name, count in ours.items():
    print(f"{name:>20}: {count:>12,.0f} here, {gpt3[name]:>17,.0f} in GPT-3: {gpt3[name] / count:>12,.0f} times")

# %% [markdown]
# (1.1 million characters are about 300,000 of GPT-2's subwords, so GPT-3 saw about a million times as much text, with a
# model 16,000 times as large.)
#
# Second, this is only the first stage, *pre-training*. The result continues a text as documents on the internet
# do, so it may answer a question with more questions. Turning it into an assistant is called alignment, and takes
# three more steps on far less data: (1) *supervised fine-tuning* on about ten thousand documents that consist of a
# question and a good answer; (2) a *reward model*, trained on people's rankings of several answers; (3) *reinforcement
# learning* (PPO), which changes the model so that its answers get a high reward. This data is not public, and alignment is
# much harder to reproduce. Pre-training, the stage shown here, takes a few hundred lines.
