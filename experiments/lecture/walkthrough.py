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
import io
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
from chargpt.model.initialization import gpt2, normal, torch_default
from chargpt.model.position import Learned
from chargpt.model.transformer import Transformer
from chargpt.optim.lr_schedule import WarmupCosine

torch.manual_seed(1337)
torch.set_num_threads(1)  # with models of this size, further threads mostly wait, for minutes beside a busy program
plt.rcParams["figure.dpi"] = 80

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
axes.set_ylim(top=45)  # space for the legend
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
# The loss of one batch is noisy: batches differ more than two steps of training do. The lecture therefore averages it over
# `eval_iters` batches of each split, in `estimate_loss`. The model is in eval mode meanwhile, without dropout. The package
# goes further: its validation reads the complete split, each prediction once, so two models are compared without noise.


# %%
@torch.no_grad()
def estimate_loss(
    model: nn.Module, train_N: torch.Tensor = train_N, eval_iters: int = 200, batch_size: int = 32
) -> tuple[float, float]:
    """The mean loss of batches of the training split and of the validation split."""
    model.eval()
    splits = (RandomBlockLoader(split_N, model.block_size, batch_size, seed=0) for split_N in (train_N, val_N))
    losses = [[loss_of(model, *split.batch(k)).item() for k in range(eval_iters)] for split in splits]
    model.train()
    return sum(losses[0]) / eval_iters, sum(losses[1]) / eval_iters


bigram_estimate = estimate_loss(bigram)
last_batches = torch.tensor(bigram_losses[-200:])
print(f"200 single batches: {last_batches.min():.2f} to {last_batches.max():.2f}")
print(f"estimate_loss: train {bigram_estimate[0]:.3f}, validation {bigram_estimate[1]:.3f}")
print(f"the complete validation split: {bigram_val:.3f}")
assert abs(bigram_estimate[1] - bigram_val) < 0.03 < last_batches.std()

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
# The lecture compares this to a *grouped convolution*: the channels are divided into groups, and each group is computed
# from its own part of the input, as if there were several small layers next to each other. In attention, the groups are the
# heads: the values of one head have no effect on the output of another, until `out_proj` mixes them.

# %%
grouped = nn.Conv1d(C, C, kernel_size=3, groups=4, bias=False)
x_BCT = x_BTC.transpose(1, 2)
groups = [F.conv1d(x, weight) for x, weight in zip(x_BCT.chunk(4, dim=1), grouped.weight.chunk(4), strict=True)]
torch.testing.assert_close(grouped(x_BCT), torch.cat(groups, dim=1), atol=1e-6, rtol=1e-5)
print("a grouped convolution = four small convolutions, concatenated")

# %% [markdown]
# A loop over heads starts many small products. nanoGPT's `CausalSelfAttention` computes all heads in one batch: it
# splits the channels into (head, channel of the head), moves the heads next to the batch dimension, B x H x T x D, and
# the same two products as for one head run for all of them. `F.scaled_dot_product_attention` (flash attention, where the
# hardware has it) replaces these lines by one kernel, and this is what the package uses.


# %%
def in_one_batch(x_BTC: torch.Tensor, H: int = 4) -> torch.Tensor:
    B, T, C = x_BTC.shape
    q_BTC, k_BTC, v_BTC = multi_head.qkv_proj(x_BTC).split(C, dim=-1)
    q_BHTD, k_BHTD, v_BHTD = (y_BTC.view(B, T, H, C // H).transpose(1, 2) for y_BTC in (q_BTC, k_BTC, v_BTC))
    scores_BHTT = q_BHTD @ k_BHTD.transpose(-2, -1) * (C // H) ** -0.5
    scores_BHTT = scores_BHTT.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
    y_BHTD = F.softmax(scores_BHTT, dim=-1) @ v_BHTD
    return multi_head.out_proj(y_BHTD.transpose(1, 2).reshape(B, T, C))


torch.testing.assert_close(in_one_batch(x_BTC), by_hand(x_BTC), atol=1e-5, rtol=1e-5)
torch.testing.assert_close(in_one_batch(x_BTC), multi_head(x_BTC), atol=1e-5, rtol=1e-5)
print("all heads in one batch = four heads by hand = the package's attention")

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
# ## 14. Overfitting and dropout
#
# If a model is large for its text, it memorizes the text: the training loss continues to fall, the validation loss does not.
# This is why section 3 splits the text. The figure shows the same model with two blocks, trained on the first
# 10,000 characters and on all one million.


# %%
def overfitting_curves(train_N: torch.Tensor, steps: int = 500) -> dict[int, tuple[float, float]]:
    torch.manual_seed(1337)
    components = lecture_components | {
        "attention": CausalSelfAttention,
        "norm": nn.LayerNorm,
        "feed_forward": partial(FeedForward, activation=nn.ReLU),
        "initialization": normal,
        "residual": True,
    }
    model = Transformer(65, block_size=32, n_layer=2, n_head=4, n_embd=64, dropout=0.0, **components)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    batches, curves = RandomBlockLoader(train_N, 32, 32, seed=1337), {}
    for step in range(steps + 1):
        if step % 100 == 0:
            curves[step] = estimate_loss(model, train_N, eval_iters=10)
        loss = loss_of(model, *batches.batch(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return curves


figure, panels = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
gaps = []
for panel, characters in zip(panels, (10_000, len(train_N)), strict=True):
    curves = overfitting_curves(train_N[:characters])
    train_losses, val_losses = zip(*curves.values(), strict=True)
    panel.plot(list(curves), train_losses, marker=".", label="training loss")
    panel.plot(list(curves), val_losses, marker=".", label="validation loss")
    panel.fill_between(list(curves), train_losses, val_losses, color="tab:red", alpha=0.15)
    panel.set_title(f"trained on {characters:,} characters", fontsize=10)
    panel.set_xlabel("steps")
    gaps.append(val_losses[-1] - train_losses[-1])
    print(f"{characters:>9,} characters: training loss {train_losses[-1]:.2f}, validation loss {val_losses[-1]:.2f}")
panels[0].set_ylabel("loss (mean of 10 batches)")
panels[0].legend()
figure.tight_layout()
plt.show()
assert gaps[0] > 0.5
assert gaps[1] < 0.2

# %% [markdown]
# More text is the best remedy. A run of the package keeps the checkpoint with the lowest validation loss (`best.ckpt`), and
# `callbacks=early_stopping` ends it when there has been no improvement. The lecture's remedy is dropout.
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
# ## 16. nanoGPT, file by file
#
# At its end, the lecture walks through [nanoGPT](https://github.com/karpathy/nanoGPT). Its `model.py` contains the model
# of this notebook, with these differences. Here each is a setting, and
# `python train.py model=gpt_nano recipe=nanogpt_laptop` has all of them.
#
# | nanoGPT's `model.py` | here |
# | --- | --- |
# | all heads in one batch, flash attention | `model/attention.py` (section 10) |
# | GELU instead of ReLU | `model/feed_forward=gelu` |
# | the token embedding is also the output head (weight tying) | `model.tie_weights=true` |
# | initial weights from N(0, 0.02), smaller where a block adds to the residual stream | `model/initialization=gpt2` |
# | no biases (`bias=False`); dropout of the embeddings, too | `model.bias=false`, `model.embedding_dropout=true` |
# | `generate` computes the complete context again for each token | `inference/generate.py` has a KV cache |
#
# The initialization matters in deep models: each block adds to the residual stream, so its scale grows
# with the depth unless the N projections into it are scaled by $1/\sqrt N$.

# %%
nano = {"attention": CausalSelfAttention, "position": Learned, "norm": nn.LayerNorm, "bias": False}
nano |= {"feed_forward": partial(FeedForward, activation=nn.GELU)}
nano |= {"block_size": 32, "n_layer": 16, "n_head": 4, "n_embd": 64, "dropout": 0.0}


def residual_stream(model: Transformer) -> list[float]:
    """The standard deviation of the residual stream after each block."""
    scales: list[float] = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, x_BTC: scales.append(x_BTC.std().item()))
    model(RandomBlockLoader(train_N, 32, 32, seed=0).batch(0)[0])
    return scales


torch.manual_seed(1337)
untied = Transformer(65, **nano, initialization=normal)
tied = Transformer(65, **nano, initialization=gpt2, tie_weights=True)
assert tied.head.weight is tied.token_embedding.weight
saved = untied.parameter_count() - tied.parameter_count()
print(f"weight tying saves {saved:,} parameters: vocabulary x channels")
assert saved == 65 * 64

figure, panels = plt.subplots(1, 2, figsize=(9, 2.8))
x = torch.linspace(-3, 2, 200)
panels[0].plot(x, F.relu(x), label="ReLU (the lecture)")
panels[0].plot(x, F.gelu(x), label="GELU (nanoGPT)")
panels[0].plot(x, F.relu(x).square(), label="squared ReLU (gpt_modern)")
panels[0].set_title("Activation functions", fontsize=10)
panels[0].legend(fontsize=8)
scales = {"N(0, 0.02)": residual_stream(untied), "scaled, as in GPT-2": residual_stream(tied)}
for name, stds in scales.items():
    panels[1].plot(range(1, 17), stds, marker=".", label=name)
panels[1].set_title("Initial scale of the residual stream", fontsize=10)
panels[1].set_xlabel("block")
panels[1].legend(fontsize=8)
figure.tight_layout()
plt.show()
print({name: f"{stds[0]:.3f} after the first block, {stds[-1]:.3f} after the last" for name, stds in scales.items()})
assert scales["N(0, 0.02)"][-1] > 2 * scales["N(0, 0.02)"][0]
assert scales["scaled, as in GPT-2"][-1] < 2 * scales["scaled, as in GPT-2"][0]

# %% [markdown]
# Its `train.py` is the loop of section 5 with what a long run needs:
#
# | nanoGPT's `train.py` | here |
# | --- | --- |
# | `get_lr`: warm-up, then a cosine | `schedule=warmup_cosine` (`optim/lr_schedule.py`) |
# | `gradient_accumulation_steps` | `trainer.accumulate_grad_batches=4`; `data.batch_size` is the size of a micro-batch |
# | DDP, started by `torchrun` | `trainer.devices=2` starts the processes itself (`cli/launcher.py`); `torchrun` works, too |
# | `estimate_loss` on random batches | the complete validation split (`training/lightning_module.py`) |
# | `ckpt.pt`, `init_from=resume` | `checkpoints/` in the run directory, `resume=RUN`; bit-identical on a CPU |
# | autocast, `GradScaler`, `torch.compile` | `trainer.precision`, `trainer.compile`; `auto` selects them |
# | AdamW, gradient clipping | `optimizer=adamw_nanogpt`, `trainer.gradient_clip_val=1.0` |
# | `config/*.py` and `configurator.py` | `conf/` and Hydra |
# | `estimate_mfu`, W&B | `mfu` in `history.csv`, `logger=wandb` |
#
# First the schedule. nanoGPT's function and the package's are equal; both are pure functions of the step.


# %%
def get_lr(step: int, lr: float = 1e-3, min_lr: float = 1e-4, warmup: int = 100, steps: int = 2000) -> float:
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    position = (step - warmup) / (steps - warmup)
    return min_lr + 0.5 * (1 + math.cos(math.pi * position)) * (lr - min_lr)


schedule = WarmupCosine(warmup_steps=100, final=0.1)
rates = [1e-3 * schedule(step, max_steps=2000) for step in range(2000)]
assert all(math.isclose(rate, get_lr(step)) for step, rate in enumerate(rates))
figure, axes = plt.subplots(figsize=(6, 2.5))
axes.plot(rates)
axes.set_xlabel("steps")
axes.set_ylabel("learning rate")
axes.set_title("Warm-up and cosine decay")
plt.show()

# %% [markdown]
# *Gradient accumulation* and *DDP* use the same fact: the gradient of the mean loss of a batch is the mean of the
# gradients of its parts. Accumulation computes the parts one after the other, for a batch that does not fit into the
# memory. DDP computes them at the same time on several devices, which then average their gradients.

# %%
model = Transformer(65, **nano | {"n_layer": 2}, initialization=gpt2)
inputs_BT, targets_BT = RandomBlockLoader(train_N, 32, 32, seed=0).batch(0)


def gradient_of(parts: int) -> torch.Tensor:
    model.zero_grad()
    for inputs, targets in zip(inputs_BT.chunk(parts), targets_BT.chunk(parts), strict=True):
        (loss_of(model, inputs, targets) / parts).backward()  # adds to the gradients
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


torch.testing.assert_close(gradient_of(parts=4), gradient_of(parts=1), atol=1e-6, rtol=1e-4)
print("the mean gradient of four parts of a batch = the gradient of the batch")

# %% [markdown]
# A *checkpoint* contains all that the next step depends on: the weights, the state of the optimizer, and the number of
# the step, from which the package computes the batch and the dropout. So a run that is interrupted and resumed ends with
# the same bits.


# %%
def train_steps(first: int, last: int, checkpoint: bytes | None = None) -> tuple[bytes, dict[str, torch.Tensor]]:
    torch.manual_seed(1337)
    model = Transformer(65, **nano | {"n_layer": 2}, initialization=gpt2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if checkpoint is not None:
        state = torch.load(io.BytesIO(checkpoint), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    batches = RandomBlockLoader(train_N, 32, 8, seed=1337)
    for step in range(first, last):
        optimizer.zero_grad()
        loss_of(model, *batches.batch(step)).backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": last}, file)
    return file.getvalue(), model.state_dict()


checkpoint, _ = train_steps(0, 10)
_, resumed = train_steps(10, 20, checkpoint)
_, uninterrupted = train_steps(0, 20)
assert all(weights.equal(uninterrupted[name]) for name, weights in resumed.items())
print(f"a checkpoint of {len(checkpoint) / 1e6:.1f} MB: 10 + 10 steps = 20 steps, bit for bit")

# %% [markdown]
# ## 17. From this model to ChatGPT
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
