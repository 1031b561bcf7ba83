"""The final script of the lecture, with separate heads: the reference for the tests of the models."""

import torch
from torch import nn
from torch.nn import functional as F

from chargpt.model.attention import CausalSelfAttention
from chargpt.model.transformer import Transformer


class Head(nn.Module):
    def __init__(self, n_embd: int, head_size: int, bias: bool = False):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=bias)
        self.query = nn.Linear(n_embd, head_size, bias=bias)
        self.value = nn.Linear(n_embd, head_size, bias=bias)

    def forward(self, x):
        _, T, _ = x.shape
        k, q, v = self.key(x), self.query(x), self.value(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        tril = torch.tril(torch.ones(T, T))
        wei = wei.masked_fill(tril == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        return wei @ v


class MultiHeadAttention(nn.Module):
    """The heads of `attention`, each with its rows of the fused weights."""

    def __init__(self, attention: CausalSelfAttention):
        super().__init__()
        n_embd = attention.qkv_proj.in_features
        head_size = n_embd // attention.n_head
        bias = attention.qkv_proj.bias is not None
        self.heads = nn.ModuleList(Head(n_embd, head_size, bias) for _ in range(attention.n_head))
        for i, head in enumerate(self.heads):
            for j, linear in enumerate((head.query, head.key, head.value)):
                rows = slice(j * n_embd + i * head_size, j * n_embd + (i + 1) * head_size)
                linear.weight.data = attention.qkv_proj.weight.data[rows].clone()
                if bias:
                    linear.bias.data = attention.qkv_proj.bias.data[rows].clone()
        self.proj = attention.out_proj or nn.Identity()

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class FeedForward(nn.Module):
    def __init__(self, n_embd: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, block):
        super().__init__()
        n_embd = block.attention.qkv_proj.in_features
        self.sa = MultiHeadAttention(block.attention)
        self.ffwd = FeedForward(n_embd)
        self.ffwd.net[0].load_state_dict(block.feed_forward.up_proj.state_dict())
        self.ffwd.net[2].load_state_dict(block.feed_forward.down_proj.state_dict())
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.ln1.load_state_dict(block.attention_norm.state_dict())
        self.ln2.load_state_dict(block.feed_forward_norm.state_dict())

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class GPTLanguageModel(nn.Module):
    """The lecture's model with the weights of `model`."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.token_embedding_table = nn.Embedding(model.vocab_size, model.n_embd)
        self.position_embedding_table = nn.Embedding(model.block_size, model.n_embd)
        self.blocks = nn.Sequential(*[Block(block) for block in model.blocks])
        self.ln_f = nn.LayerNorm(model.n_embd)
        self.lm_head = nn.Linear(model.n_embd, model.vocab_size)
        self.token_embedding_table.load_state_dict(model.token_embedding.state_dict())
        self.position_embedding_table.load_state_dict(model.position.embedding.state_dict())
        self.ln_f.load_state_dict(model.final_norm.state_dict())
        self.lm_head.load_state_dict(model.head.state_dict())

    def forward(self, idx, targets):
        _, T = idx.shape
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(T))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        B, T, C = logits.shape
        return logits, F.cross_entropy(logits.view(B * T, C), targets.view(B * T))
