"""A decoder-only Transformer, its parts given from outside."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import Mistake
from chargpt.model.attention import KeyValueCache
from chargpt.model.dropout import dropout
from chargpt.model.language_model import LanguageModel
from chargpt.model.position import PositionEncoding, Rotation


class Block(nn.Module):
    """Communication (attention), then computation (feed-forward), each behind a norm (pre-norm).

    Args:
        n_embd: C.
        attention, norm, feed_forward: the parts, made for C channels; `feed_forward` may be None.
        residual: whether each part adds to the stream or replaces it.
    """

    def __init__(
        self,
        n_embd: int,
        attention: Callable[..., nn.Module],
        norm: Callable[[int], nn.Module],
        feed_forward: Callable[[int], nn.Module] | None,
        residual: bool,
    ):
        super().__init__()
        self.residual = residual
        self.attention_norm = norm(n_embd)
        self.attention = attention(n_embd)
        self.feed_forward_norm = norm(n_embd) if feed_forward else None
        self.feed_forward = feed_forward(n_embd) if feed_forward else None

    def forward(
        self,
        x_BTC: Float[Tensor, "B T C"],
        rotation: Rotation | None,
        cache: KeyValueCache | None,
        embeddings_BTC: Float[Tensor, "B T C"],
        earlier: Sequence[Float[Tensor, "B T C"]],
    ) -> Float[Tensor, "B T C"]:
        """`embeddings_BTC` and `earlier` (the outputs of the blocks before) are for blocks that want them."""
        y_BTC = self.attention(self.attention_norm(x_BTC), rotation, cache)
        x_BTC = x_BTC + y_BTC if self.residual else y_BTC
        if self.feed_forward is not None:
            y_BTC = self.feed_forward(self.feed_forward_norm(x_BTC))
            x_BTC = x_BTC + y_BTC if self.residual else y_BTC
        return x_BTC


class Transformer(LanguageModel):
    """tokens_BT -> logits_BTV: embeddings, blocks, a last norm, a linear head.

    Args:
        vocab_size: V.
        block_size: the longest context T.
        n_layer: number of blocks.
        n_head: H, attention heads; must divide n_embd.
        n_embd: C, channels.
        dropout: in [0, 1), on the embeddings and handed to the parts.
        attention: makes a block's attention from (n_embd, n_head=, dropout=).
        position: makes the position encoding from (block_size, n_embd, head_size).
        norm: makes a norm from (n_embd).
        feed_forward: makes a block's feed-forward from (n_embd, dropout=); None for none.
        initialization: sets the weights of the finished model.
        block: makes a block; `Block` unless a variant wants to read the embeddings or earlier blocks.
        final_norm: whether the stream is normed before the head.
        residual: whether blocks have skip connections.
        embedding_dropout: whether dropout falls on the embeddings too (nanoGPT does, the lecture does not).
        tie_weights: whether the head's weights are the token embedding's (Press and Wolf 2017).
        bias: whether the head has one; in conf/ the parts' biases follow it unless set themselves.

    Raises:
        Mistake: on sizes that do not fit together; says what to change.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float,
        attention: Callable[..., nn.Module],
        position: Callable[..., PositionEncoding],
        norm: Callable[[int], nn.Module],
        feed_forward: Callable[..., nn.Module] | None,
        initialization: Callable[["Transformer"], None],
        block: Callable[..., nn.Module] = Block,
        final_norm: bool = True,
        residual: bool = True,
        embedding_dropout: bool = False,
        tie_weights: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        sizes = dict(block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        for name, value in sizes.items():
            if value < 1:
                raise Mistake(f"model.{name}={value}: it must be 1 or more")
        if not 0 <= dropout < 1:
            raise Mistake(f"model.dropout={dropout}: it must be at least 0 and less than 1")
        if tie_weights and bias:
            raise Mistake("model.tie_weights=true wants model.bias=false: the embedding has no bias to share")
        self.vocab_size, self.block_size = vocab_size, block_size
        self.n_head, self.n_embd = n_head, n_embd
        self.embedding_dropout = dropout if embedding_dropout else 0.0

        def new_attention(n_embd: int) -> nn.Module:
            return attention(n_embd, n_head=n_head, dropout=dropout)

        def new_feed_forward(n_embd: int) -> nn.Module:
            return feed_forward(n_embd, dropout=dropout)

        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.blocks = nn.ModuleList(
            block(n_embd, new_attention, norm, feed_forward and new_feed_forward, residual) for _ in range(n_layer)
        )
        self.position = position(block_size, n_embd, n_embd // n_head)
        self.final_norm = norm(n_embd) if final_norm else nn.Identity()
        self.head = nn.Linear(n_embd, vocab_size, bias=bias)
        if tie_weights:
            self.head.weight = self.token_embedding.weight
        initialization(self)

    def forward(
        self, tokens_BT: Integer[Tensor, "B T"], cache: list[KeyValueCache] | None = None
    ) -> Float[Tensor, "B T V"]:
        """With a cache (`new_cache`), tokens_BT are the newest tokens only, and follow those already in it.

        Raises:
            ValueError: more tokens than `block_size`.
        """
        start = cache[0].length if cache else 0
        end = start + tokens_BT.shape[1]
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit into a block of {self.block_size}")
        positions_T = torch.arange(start, end, device=tokens_BT.device)
        x_BTC = self.position.add(self.token_embedding(tokens_BT), positions_T)
        x_BTC = dropout(x_BTC, self.embedding_dropout, self.training)
        rotation = self.position.rotation(positions_T)
        embeddings_BTC, earlier = x_BTC, []
        for i, block in enumerate(self.blocks):
            x_BTC = block(x_BTC, rotation, cache[i] if cache else None, embeddings_BTC, earlier)
            earlier.append(x_BTC)
        return self.head(self.final_norm(x_BTC))

    def new_cache(self, batch_size: int) -> list[KeyValueCache]:
        """Empty key-value caches for B sequences of up to `block_size` tokens, one a block."""
        size = (2, batch_size, self.n_head, self.block_size, self.n_embd // self.n_head)
        return [KeyValueCache(self.token_embedding.weight.new_empty(size)) for _ in self.blocks]

    def token_vectors(self) -> Float[Tensor, "V C"]:
        return self.token_embedding.weight

    def residual_projections(self) -> list[nn.Linear]:
        """The linear layers whose output is added to the residual stream."""
        parts = [part for block in self.blocks for part in (block.attention, block.feed_forward)]
        return [part.projection for part in parts if part is not None and part.projection is not None]

    def flops_per_token(self) -> int:
        products = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        attention = len(self.blocks) * 2 * self.block_size * self.n_embd
        return 3 * 2 * (products + attention)
