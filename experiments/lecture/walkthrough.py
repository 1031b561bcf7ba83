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
# # Let's build GPT, walked through
#
# The argument of the lecture ["Let's build GPT: from scratch, in code, spelled
# out"](https://www.youtube.com/watch?v=kCc8FmEb1nY), runnable from top to bottom in about a minute on a CPU. What the
# lecture derives by hand is derived by hand here, and then shown to be equal to what the package `chargpt` does; what
# needs no derivation is imported. Each `assert` is a claim that is checked when you run it.
#
# Letters for shapes: B batch, T time (places in a block), C channels, H heads, D channels of a head, V vocabulary.

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
# One file of about a million characters. A language model is a machine that, shown some of it, says what comes next.

# %%
text = TinyShakespeare().read()
print(f"{len(text):,} characters. It begins:\n")
print(text[:200])

# %%
vocabulary = sorted(set(text))
print(f"{len(vocabulary)} characters:", make_visible("".join(vocabulary)))
assert len(text) == 1_115_394
assert len(vocabulary) == 65

# %% [markdown]
# ## 2. Characters to numbers
#
# The simplest tokenizer: each character is its place in the sorted vocabulary. Two dictionaries by hand, and the
# package's `CharTokenizer`, which does the same to a hundred megabytes in seconds.

# %%
number_of = {character: i for i, character in enumerate(vocabulary)}
character_of = dict(enumerate(vocabulary))


def encode(some_text: str) -> list[int]:
    return [number_of[character] for character in some_text]


def decode(numbers: list[int]) -> str:
    return "".join(character_of[i] for i in numbers)


tokenizer = CharTokenizer.from_text(text)
print(encode("hii there"))
assert decode(encode("hii there")) == "hii there"
assert tokenizer.encode("hii there").tolist() == encode("hii there")

# %% [markdown]
# There is a trade: a larger vocabulary makes a shorter sequence. A *subword* tokenizer (here SentencePiece's
# byte-pair encoding, trained on this very text) puts what often stands together into one token. GPT-2's tokenizer has
# 50,257 of them. The lecture stays with characters, and so does this bench, because a small vocabulary keeps the model
# small and everything in sight.

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
axes.semilogx(sizes, [len(text) * share for share in tokens_per_character], marker="o", base=2)
axes.set_xlabel("vocabulary")
axes.set_ylabel("tokens in the corpus")
axes.set_title("A larger vocabulary, a shorter sequence")
axes.grid(alpha=0.3)
assert tokens_per_character == sorted(tokens_per_character, reverse=True)

# %% [markdown]
# ## 3. Nine characters, eight examples
#
# The first 90 % are for training, the rest tells whether the model has learned Shakespeare or learned *this file* by
# heart. The text does not go into the model all at once but in *blocks*. A block of nine characters holds eight
# examples, with contexts of one to eight characters: so the model learns to go on from any of these lengths.

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
# Processors like to do many blocks at once. The blocks of a batch know nothing of each other. In the package batch
# k is a pure function of (seed, k), which is what lets a run that was cut off go on as if nothing had happened.

# %%
batches = RandomBlockLoader(train_N, block_size, batch_size=4, seed=1337)
inputs_BT, targets_BT = batches.batch(0)
print("inputs", tuple(inputs_BT.shape))
for row in inputs_BT:
    print("  ", make_visible(decode(row.tolist())))
print("targets: the same, one place further")
for row in targets_BT:
    print("  ", make_visible(decode(row.tolist())))
assert inputs_BT[:, 1:].equal(targets_BT[:, :-1])

# %% [markdown]
# ## 5. The bigram model
#
# The smallest model that can be trained: a table with a row for each character, which holds the logits (the scores
# before the softmax) of what follows it. It looks at one character only.
#
# What loss should it start with? Knowing nothing, every character has probability 1/65, and the loss is
# $-\ln(1/65) = 4.174$. The lecture's model starts at 4.87 instead. Its table is drawn from N(0, 1), so it does not say "I do
# not know": it makes confident guesses, and they are wrong. On average, $E[\ln\sum e^{x}] - E[x] \approx \ln V + 1/2$,
# which is 4.67; the lecture's one table, on one batch of four blocks, was a little unluckier than that.

# %%
small_batches = RandomBlockLoader(train_N, 8, batch_size=4, seed=0)


def loss_of(model: nn.Module, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())


with torch.no_grad():
    wild = torch.tensor([loss_of(Bigram(65, std=1.0), *small_batches.batch(k)).item() for k in range(300)])
    calm = loss_of(Bigram(65, std=0.02), *small_batches.batch(0)).item()

figure, axes = plt.subplots(figsize=(6, 3))
axes.hist(wild.numpy(), bins=30, color="tab:blue", alpha=0.7, label="300 tables from N(0, 1), a batch each")
axes.axvline(math.log(65), color="tab:green", label="ln 65 = 4.174")
axes.axvline(4.87, color="tab:red", linestyle="--", label="the lecture's table: 4.87")
axes.set_xlabel("loss before training")
axes.legend(fontsize=8)
print(f"N(0, 1): {wild.mean():.3f} on average; N(0, 0.02): {calm:.3f}; ln 65 + 1/2 = {math.log(65) + 0.5:.3f}")
assert abs(wild.mean().item() - (math.log(65) + 0.5)) < 0.05
assert wild.min() < 4.87 < wild.max()
assert abs(calm - math.log(65)) < 0.01

# %% [markdown]
# Training is a loop of four lines: a batch, the loss, the gradient, a step down. This is what `python train.py` does too,
# with everything around it that a long run needs.


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
    """Over the whole validation split, each prediction counted once."""
    blocks = EvalBlockLoader(val_N, model.block_size, 1024)
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item() for x, y in blocks]
    return sum(losses) / (len(val_N) - 1)


def write(model: nn.Module, length: int = 150) -> str:
    start_T = torch.zeros(1, dtype=torch.long)  # a line break
    return tokenizer.decode(torch.cat(list(generate(model.eval(), start_T, length, seed=3))))


torch.manual_seed(1337)
bigram = Bigram(65)
before = write(bigram)
bigram_losses = train(bigram, steps=4000, lr=1e-2)
bigram_val = validation_loss(bigram)
print("BEFORE\n" + before)
print(f"\nAFTER 4000 steps: validation loss {bigram_val:.3f}\n" + write(bigram))
assert bigram_val < 2.55

# %%
figure, axes = plt.subplots(figsize=(6, 3))
smooth = torch.tensor(bigram_losses).view(-1, 50).mean(1)
axes.plot(range(25, 4000, 50), smooth)
axes.axhline(math.log(65), color="tab:green", linestyle=":", label="ln 65")
axes.set_xlabel("steps")
axes.set_ylabel("training loss")
axes.legend()
axes.set_title("The bigram model")
plt.show()

# %% [markdown]
# It has learned which letters follow which, and nothing more, for it sees nothing more. The characters have to talk
# to each other.
#
# ## 6. The trick: an average over the past, in three versions
#
# The weakest way to talk: each place takes the mean of all places up to its own. Version 1 says it in loops.

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
# Version 2: a product with a lower-triangular matrix whose rows sum to 1 does the same, all places at once.


# %%
def by_matrix(x_BTC: torch.Tensor) -> torch.Tensor:
    T = x_BTC.shape[1]
    weights_TT = torch.tril(torch.ones(T, T))
    weights_TT = weights_TT / weights_TT.sum(dim=1, keepdim=True)
    return weights_TT @ x_BTC


weights_TT = torch.tril(torch.ones(4, 4))
weights_TT / weights_TT.sum(dim=1, keepdim=True)

# %% [markdown]
# Version 3: the same weights as a softmax. All scores 0, the future's set to minus infinity. This is the one to keep,
# because the scores need not stay 0: they can be *learned from the data*, how much each place wants to hear from each.


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
    print(f"{version.__name__:<11} {(time.perf_counter() - start) / 3 * 1e3:8.2f} ms for 32 blocks of 64 places")

# %% [markdown]
# ## 7. Self-attention
#
# Each place sends out a *query* (what am I looking for?), a *key* (what do I hold?) and a *value* (what do I tell, if you
# find me interesting?). The score of a pair is the product of query and key; the rest is version 3.

# %%
torch.manual_seed(1337)
B, T, C, D = 4, 8, 32, 16
x_BTC = torch.randn(B, T, C)
key, query, value = (nn.Linear(C, D, bias=False) for _ in range(3))

k_BTD, q_BTD, v_BTD = key(x_BTC), query(x_BTC), value(x_BTC)
scores_BTT = q_BTD @ k_BTD.transpose(-2, -1) * D**-0.5
scores_BTT = scores_BTT.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
attention_BTT = F.softmax(scores_BTT, dim=-1)
gathered_BTD = attention_BTT @ v_BTD

torch.set_printoptions(precision=2, sci_mode=False)
print(attention_BTT[0].detach())
assert (attention_BTT.sum(-1) - 1).abs().max() < 1e-6

# %% [markdown]
# The package's `CausalSelfAttention` computes queries, keys and values of all heads in one product and hands them to
# torch's fused kernel, which never builds the T x T matrix. Given the same weights it gives the same numbers.

# %%
attention = CausalSelfAttention(C, n_head=2, projection=False)
head_0 = slice(0, D)  # the channels of the first of its two heads
with torch.no_grad():
    for part, linear in enumerate((query, key, value)):
        attention.qkv_proj.weight[part * C : part * C + D] = linear.weight
torch.testing.assert_close(attention(x_BTC)[..., head_0], gathered_BTD, atol=1e-6, rtol=1e-5)
torch.testing.assert_close(attention.attention_weights(x_BTC)[:, 0], attention_BTT, atol=1e-6, rtol=1e-5)
print("one head by hand = the package's attention")

# %% [markdown]
# What does a head look at once it is trained? A model of one layer with one head, token and position embeddings
# of 32 channels, and a context of 32, for a quarter of a minute; then its weights on one sentence. (`python visualize.py
# run=... text=...` draws this for any model.)

# %%
lecture_parts = {
    "attention": partial(CausalSelfAttention, projection=False),
    "position": Learned,
    "norm": lambda channels: nn.Identity(),
    "feed_forward": None,
    "initialization": torch_default,
    "residual": False,
    "final_norm": False,
}
torch.manual_seed(1337)
one_head = Transformer(65, block_size=32, n_layer=1, n_head=1, n_embd=32, dropout=0.0, **lecture_parts)
train(one_head, steps=2500, lr=3e-3, block_size=32)
print(f"one head: {validation_loss(one_head):.3f}, the table: {bigram_val:.3f}")
assert validation_loss(one_head) < bigram_val

sentence = "But soft, what light through yon"
(maps_HTT,) = attention_maps(one_head.eval(), tokenizer.encode(sentence))
plot_attention(maps_HTT, list(make_visible(sentence)), "One head: how much each character takes from those before it")

# %% [markdown]
# ## 8. Why the scores are divided by the square root of the head size
#
# If queries and keys have variance 1, their product has variance D. A softmax of large numbers is sharp: nearly
# all its weight falls on the largest, so that each place listens to one other, and almost no gradient flows to the rest.

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
    panel.set_xlabel("place")
panels[0].set_ylabel("weight")
figure.suptitle("The same scores, ever sharper")
figure.tight_layout()

# %% [markdown]
# ## 9. Six notes on attention
#
# 1. **Attention is a way to talk**: places are nodes of a graph, each gathers a weighted sum from the nodes that point at
#    it. In a language model each node hears itself and the nodes before it.
# 2. **It has no notion of space.** It acts on a set of vectors: shuffle them and the output is shuffled alike. That is why
#    positions are added to the embeddings.

# %%
order = torch.randperm(T)


def talk_all_to_all(x_BTC: torch.Tensor) -> torch.Tensor:
    scores_BTT = query(x_BTC) @ key(x_BTC).transpose(-2, -1) * D**-0.5
    return F.softmax(scores_BTT, dim=-1) @ value(x_BTC)


torch.testing.assert_close(talk_all_to_all(x_BTC)[:, order], talk_all_to_all(x_BTC[:, order]))
print("shuffled in, shuffled out: attention without positions cannot tell the order")

# %% [markdown]
# 3. **The blocks of a batch never talk.** Change one and the others' outputs stay what they were, to the last bit.

# %%
changed_BTC = x_BTC.clone()
changed_BTC[0] += 1
assert attention(changed_BTC)[1:].equal(attention(x_BTC)[1:])
assert not attention(changed_BTC)[0].equal(attention(x_BTC)[0])

# %% [markdown]
# 4. **Encoder or decoder** is one line: without the mask all nodes talk to all (an encoder, say to judge the mood of a
#    sentence); with it nobody hears the future (a decoder, which can therefore write). The gradient of place 3 with respect
#    to later places is not small but exactly 0.

# %%
probe_BTC = x_BTC.clone().requires_grad_()
attention(probe_BTC)[:, 3].sum().backward()
assert (probe_BTC.grad[:, 4:] == 0).all()
assert (probe_BTC.grad[:, :4] != 0).any()
probe_BTC = x_BTC.clone().requires_grad_()
talk_all_to_all(probe_BTC)[:, 3].sum().backward()
assert (probe_BTC.grad[:, 4:] != 0).any()
print("a decoder is blind to the future, an encoder is not")

# %% [markdown]
# 5. **Self or cross**: here queries, keys and values come from the same text. In cross-attention the keys and values come
#    from somewhere else, for example from the French sentence that is being translated.

# %%
french_BSC = torch.randn(B, 11, C)
scores_BTS = query(x_BTC) @ key(french_BSC).transpose(-2, -1) * D**-0.5
translated_BTD = F.softmax(scores_BTS, dim=-1) @ value(french_BSC)
print("8 places ask, 11 places answer:", tuple(scores_BTS.shape), "->", tuple(translated_BTD.shape))
assert translated_BTD.shape == (B, T, D)

# %% [markdown]
# 6. **Scaled**, as section 8 has shown: the variance of the scores stays 1, and the softmax soft.
#
# ## 10. Many heads
#
# Different things are worth looking for at once: the vowel before, the start of the word, the speaker's name. So several
# small heads run side by side and their outputs are laid next to each other. Four heads of 8 channels cost as much as
# one of 32. In the package they are one matrix; cut into its heads it is the lecture's list.

# %%
torch.manual_seed(1337)
many = CausalSelfAttention(C, n_head=4, projection=True)


def by_hand(x_BTC: torch.Tensor) -> torch.Tensor:
    outputs = []
    for head in range(4):
        rows = slice(head * 8, head * 8 + 8)
        q_BTD, k_BTD, v_BTD = (
            F.linear(x_BTC, many.qkv_proj.weight[part * C : part * C + C][rows]) for part in range(3)
        )
        scores_BTT = q_BTD @ k_BTD.transpose(-2, -1) * 8**-0.5
        scores_BTT = scores_BTT.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
        outputs.append(F.softmax(scores_BTT, dim=-1) @ v_BTD)
    return many.out_proj(torch.cat(outputs, dim=-1))


torch.testing.assert_close(many(x_BTC), by_hand(x_BTC), atol=1e-5, rtol=1e-5)
print("four heads by hand, concatenated and projected = the package's attention")

# %% [markdown]
# ## 11. Feed-forward: after talking, thinking
#
# Attention gathers; it does not yet make anything of what it has gathered. A small network of two layers, wide inside
# and with a ReLU, does, at each place for itself.

# %%
thinking = FeedForward(C, activation=nn.ReLU)
by_hand_BTC = F.linear(
    F.relu(F.linear(x_BTC, thinking.up_proj.weight, thinking.up_proj.bias)),
    thinking.down_proj.weight,
    thinking.down_proj.bias,
)
torch.testing.assert_close(thinking(x_BTC), by_hand_BTC, atol=1e-6, rtol=1e-5)
torch.testing.assert_close(thinking(x_BTC)[:, 3], thinking(x_BTC[:, 3:4])[:, 0], atol=1e-6, rtol=1e-5)

# %% [markdown]
# ## 12. Residuals: why depth works
#
# Stack a few of these blocks and training becomes hard: the gradient has to pass through every layer, and each one
# weakens it. With skip connections, `x = x + part(x)`, a sum hands the gradient on undiminished to both sides: there is
# a road from the loss straight to the embeddings, and the blocks are detours that start small. Here are the gradients of an
# untrained model of 16 layers, by layer, with and without.


# %%
def gradient_norms(residual: bool, layers: int = 16) -> list[float]:
    torch.manual_seed(1337)
    parts = lecture_parts | {
        "residual": residual,
        "attention": CausalSelfAttention,
        "feed_forward": partial(FeedForward, activation=nn.ReLU),
    }
    deep = Transformer(65, block_size=32, n_layer=layers, n_head=4, n_embd=32, dropout=0.0, **parts)
    loss_of(deep, *RandomBlockLoader(train_N, 32, 32, seed=0).batch(0)).backward()
    return [block.attention.qkv_proj.weight.grad.norm().item() for block in deep.blocks]


with_residuals, without = gradient_norms(True), gradient_norms(False)
figure, axes = plt.subplots(figsize=(6, 3))
axes.semilogy(range(1, 17), with_residuals, marker="o", label="with residuals")
axes.semilogy(range(1, 17), [max(norm, 1e-30) for norm in without], marker="o", label="without")
axes.set_xlabel("layer")
axes.set_ylabel("norm of the gradient")
axes.set_title("What reaches the weights of each layer")
axes.legend()
print(f"first layer: {with_residuals[0]:.1e} with, {without[0]:.1e} without")
assert without[0] < 1e-6 * without[-1]
assert with_residuals[0] > 1e-2 * with_residuals[-1]

# %% [markdown]
# ## 13. Layer norm
#
# Batch norm makes each *column* (a channel, over the batch) mean 0 and variance 1: examples depend on each other, and
# running means have to be kept for later. Layer norm does the same to each *row* (one place, over its channels): nothing
# to keep, no difference between training and use. The change is one index.


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
# The original Transformer norms after each part; GPT-2 and everything since norm before (pre-norm), so that the
# residual road stays free. The lecture does the same, with one more norm before the head.
#
# ## 14. Dropout
#
# A larger model learns a million characters by heart. Dropout sets some numbers to 0 at random in training and
# scales the rest up, so that no part can rely on any other: many thinned models trained at once, whose mean is used in the
# end.

# %%
torch.manual_seed(1337)
ones = torch.ones(100_000)
dropped = F.dropout(ones, 0.2, training=True)
print(
    f"of 1s: {(dropped == 0).float().mean():.3f} are 0, the others {dropped.max():.2f}; the mean is {dropped.mean():.3f}"
)
assert abs(dropped.mean().item() - 1) < 0.01
assert F.dropout(ones, 0.2, training=False).equal(ones)

# %% [markdown]
# ## 15. Scaled up
#
# All the parts are there. The rest is size: `python train.py +lecture=scaled_up`, 5000 steps, minutes on a GPU.

# %%
import csv

import hydra
from omegaconf import OmegaConf

from chargpt.config.instantiate import instantiate

HERE = Path.cwd()
with hydra.initialize_config_dir(str(HERE.parent.parent / "conf"), version_base="1.3"):
    config = hydra.compose("train", ["+lecture=scaled_up"])
sizes_of_it = {key: config.model[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
scaled_up = instantiate(OmegaConf.to_container(config.model, resolve=True), "model", vocab_size=65)
print(sizes_of_it, f"batch {config.data.batch_size}, lr {config.optimizer.lr}, {config.trainer.max_steps} steps")
print(f"{scaled_up.parameter_count():,} parameters, {scaled_up.flops_per_token():,} operations a character")
assert scaled_up.parameter_count() == 10_788_929

# %% [markdown]
# The curves of every rung as they were measured ([how](README.md)): the lecture's scaled-up model reaches 1.48.

# %%
curves: dict[str, dict[int, list[float]]] = {}
with (HERE / "curves.csv").open(newline="") as file:
    for point in csv.DictReader(file):
        curves.setdefault(point["rung"], {}).setdefault(int(point["step"]), []).append(float(point["val_loss"]))
figure, axes = plt.subplots(figsize=(8, 4.5))
for rung, losses in curves.items():
    axes.plot(list(losses), [sum(values) / len(values) for values in losses.values()], marker=".", label=rung)
axes.axhline(1.48, color="black", linestyle=":", label="the lecture's scaled_up")
axes.set_xlabel("steps")
axes.set_ylabel("validation loss")
axes.legend(ncols=2, fontsize=8)
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## 16. What stands between this and ChatGPT
#
# First, scale. The same architecture, give or take details:

# %%
ours = {"parameters": scaled_up.parameter_count(), "tokens": len(text), "tokens as subwords": 300_000}
gpt3 = {"parameters": 175e9, "tokens": 300e9, "tokens as subwords": 300e9}
for name, number in ours.items():
    print(f"{name:>20}: {number:>12,.0f} here, {gpt3[name]:>17,.0f} in GPT-3: {gpt3[name] / number:>12,.0f} times")

# %% [markdown]
# (1.1 million characters are about 300,000 of GPT-2's subwords, so GPT-3 saw about a million times as much text, with a
# model 16,000 times as large.)
#
# Second, what this trains is only the first stage, *pretraining*: a machine that goes on from any text as the internet
# would, which may mean answering a question with more questions. Making an assistant of it is called alignment, and takes
# three more steps on far less data: (1) *supervised fine-tuning* on some ten thousand documents that look like a
# question and a good answer; (2) a *reward model*, trained on people's rankings of several answers; (3) *reinforcement
# learning* (PPO), which changes the model so that its answers score high. Those data are not public, and that stage is much
# harder to repeat. The stage before it you have just walked through, and it is a few hundred lines.
