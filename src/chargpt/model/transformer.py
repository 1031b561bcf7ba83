"""A decoder-only Transformer whose submodules are built by callables passed to its constructor."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.attention import LayerKVCache
from chargpt.model.block_context import BlockContext
from chargpt.model.kernels.dropout import dropout, vector_dropout
from chargpt.model.language_model import LanguageModel
from chargpt.model.ngram_embedding import NGramEmbedding
from chargpt.model.position import PositionEncoding

MAX_LAYERS = 10_000  # a config from an untrusted file must not use up the memory


class Block(nn.Module):
    """Attention, then feed-forward, each after a norm (pre-norm).

    Args:
        n_embd: C.
        attention, norm, feed_forward: build the submodules for C channels; `feed_forward` may be None.
        residual: whether the output of each submodule is added to the residual stream, or replaces it.
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
        context: BlockContext,
        cache: LayerKVCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        y_BTC = self.attention(self.attention_norm(x_BTC), context, cache)
        x_BTC = x_BTC + y_BTC if self.residual else y_BTC
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            y_BTC = self.feed_forward(self.feed_forward_norm(x_BTC))
            x_BTC = x_BTC + y_BTC if self.residual else y_BTC
        return x_BTC


class KVCache:
    """The keys and values of all tokens so far, and the last tokens for the n-gram embeddings.

    Args:
        layers: the KV cache of each block.
        previous_BR: the last R tokens so far.
    """

    def __init__(self, layers: Iterable[LayerKVCache], previous_BR: Integer[Tensor, "B R"]):
        self.layers = list(layers)
        self.previous_BR = previous_BR

    @property
    def length(self) -> int:
        """The number of tokens in the cache."""
        return self.layers[0].length

    def positions(self, start: int, end: int) -> Integer[Tensor, " T"]:
        """The positions of the next T = end - start tokens in the block."""
        return torch.arange(start, end, device=self.previous_BR.device)

    def append(self, tokens_BT: Integer[Tensor, "B T"]) -> None:
        """Sets `previous_BR` to the last R tokens up to and including tokens_BT."""
        self.previous_BR = torch.cat((self.previous_BR, tokens_BT), dim=1)[:, tokens_BT.shape[1] :]


class Transformer(LanguageModel):
    """tokens_BT -> logits_BTV: embeddings, blocks, a final norm, a linear head.

    Args:
        vocab_size: V.
        block_size: the longest context T.
        n_layer: the number of blocks.
        n_head: H, the number of attention heads; must divide n_embd.
        n_embd: C, channels.
        dropout: in [0, 1), passed to the submodules; see `embedding_dropout`.
        attention: builds a block's attention from (n_embd, n_head=, dropout=).
        position: builds the position encoding from (block_size, n_embd, head_size).
        norm: builds a norm from (n_embd).
        feed_forward: builds a block's feed-forward layer from (n_embd, dropout=); None for none.
        initialization: sets the initial weights of the complete model.
        block: builds a block, as `Block` does; a variant may read more of the `BlockContext`.
        ngram_embedding: builds the n-gram embeddings from (vocab_size, n_embd); None for none.
        value_residual: builds a block's value mixer from (vocab_size, n_embd); None for none.
        unet_skips: builds the skip connections between blocks from (n_layer); None for none.
        softcap: applied to the logits; None for none.
        embedding_norm: whether there is a norm before the first block.
        final_norm: whether there is a norm before the head.
        residual: whether blocks have residual connections.
        embedding_dropout: whether dropout applies to the embeddings too (in nanoGPT, not in the lecture).
        token_dropout: in [0, 1), the probability that a token's complete embedding, n-grams included, is dropped.
        tie_weights: whether the head and the token embedding share their weights (Press and Wolf 2017).
        bias: whether the head has a bias; in conf/ it is also the default for the biases of the submodules.

    Raises:
        UserError: sizes that are invalid or do not fit together.
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
        ngram_embedding: Callable[[int, int], NGramEmbedding] | None = None,
        value_residual: Callable[[int, int], nn.Module] | None = None,
        unet_skips: Callable[[int], nn.Module] | None = None,
        softcap: nn.Module | None = None,
        embedding_norm: bool = False,
        final_norm: bool = True,
        residual: bool = True,
        embedding_dropout: bool = False,
        token_dropout: float = 0.0,
        tie_weights: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        sizes = dict(block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"model.{name}={value}: it must be 1 or more")
        if n_layer > MAX_LAYERS:
            raise UserError(f"model.n_layer={n_layer}: it must be at most {MAX_LAYERS:,}")
        for name, value in {"dropout": dropout, "token_dropout": token_dropout}.items():
            if not 0 <= value < 1:
                raise UserError(f"model.{name}={value}: it must be at least 0 and less than 1")
        if tie_weights and bias:
            raise UserError("model.tie_weights=true requires model.bias=false: the embedding has no bias to share")
        self.vocab_size, self.block_size = vocab_size, block_size
        self.n_head, self.n_embd = n_head, n_embd
        self.embedding_dropout = dropout if embedding_dropout else 0.0
        self.token_dropout = token_dropout

        def new_attention(n_embd: int) -> nn.Module:
            return attention(n_embd, n_head=n_head, dropout=dropout)

        new_feed_forward = feed_forward and (lambda n_embd: feed_forward(n_embd, dropout=dropout))
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.ngram_embedding = ngram_embedding(vocab_size, n_embd) if ngram_embedding else None
        self.embedding_norm = norm(n_embd) if embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            block(n_embd, new_attention, norm, new_feed_forward, residual) for _ in range(n_layer)
        )
        self.value_residual = (
            nn.ModuleList(value_residual(vocab_size, n_embd) for _ in range(n_layer)) if value_residual else None
        )
        self.unet_skips = unet_skips(n_layer) if unet_skips else None
        self.position = position(block_size, n_embd, n_embd // n_head)
        self.final_norm = norm(n_embd) if final_norm else nn.Identity()
        self.head = nn.Linear(n_embd, vocab_size, bias=bias)
        self.softcap = softcap if softcap is not None else nn.Identity()
        if tie_weights:
            self.head.weight = self.token_embedding.weight
        initialization(self)

    def forward(self, tokens_BT: Integer[Tensor, "B T"], cache: KVCache | None = None) -> Float[Tensor, "B T V"]:
        """The logits of the token after each position. With a cache (`new_cache`), tokens_BT follow the cached tokens.

        Raises:
            ValueError: there are more than `block_size` tokens.
        """
        start = cache.length if cache else 0
        end = start + tokens_BT.shape[1]
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit into a block of {self.block_size}")
        positions_T = cache.positions(start, end) if cache else torch.arange(end, device=tokens_BT.device)
        x_BTC = self._embed(tokens_BT, positions_T, cache)
        context = BlockContext(tokens_BT, x_BTC, self.position.rotation(positions_T))
        for i, block in enumerate(self.blocks):
            if self.unet_skips is not None:
                x_BTC = self.unet_skips(x_BTC, context.outputs)
            context.value_mixer = self.value_residual[i] if self.value_residual is not None else None
            x_BTC = block(x_BTC, context, cache.layers[i] if cache else None)
            context.outputs.append(x_BTC)
        return self.softcap(self.head(self.final_norm(x_BTC)))

    def _embed(self, tokens_BT: Tensor, positions_T: Tensor, cache: KVCache | None) -> Float[Tensor, "B T C"]:
        x_BTC = self.token_embedding(tokens_BT)
        if self.ngram_embedding is not None:
            x_BTC = x_BTC + self.ngram_embedding(tokens_BT, cache.previous_BR if cache else None)
            if cache:
                cache.append(tokens_BT)
        x_BTC = self.position.add(vector_dropout(x_BTC, self.token_dropout, self.training), positions_T)
        return self.embedding_norm(dropout(x_BTC, self.embedding_dropout, self.training))

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty KV cache for B sequences of up to `block_size` tokens."""
        weight_VC = self.token_embedding.weight
        size = (2, batch_size, self.n_head, self.block_size, self.n_embd // self.n_head)
        context_length = self.ngram_embedding.context_length if self.ngram_embedding is not None else 0
        previous_BR = torch.zeros(batch_size, context_length, dtype=torch.long, device=weight_VC.device)
        return KVCache([LayerKVCache(weight_VC.new_empty(size)) for _ in self.blocks], previous_BR)

    def input_embeddings(self) -> Float[Tensor, "V C"]:
        return self.token_embedding.weight

    def residual_projections(self) -> list[nn.Linear]:
        """The linear layers whose output is added to the residual stream."""
        submodules = [module for block in self.blocks for module in (block.attention, block.feed_forward)]
        projections = [getattr(module, name, None) for module in submodules for name in ("out_proj", "down_proj")]
        return [projection for projection in projections if projection is not None]

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        stacked = {getattr(block.attention, "qkv_proj", None) for block in self.blocks}
        layers = [m for block in self.blocks for m in block.modules() if isinstance(m, nn.Linear)]
        # torch declares the weight of a linear layer as a Tensor.
        return [(cast(nn.Parameter, layer.weight), 3 if layer in stacked else 1) for layer in layers]

    def embedding_tables(self) -> list[nn.Embedding]:
        return list(self.ngram_embedding.tables) if self.ngram_embedding is not None else []

    def flops_per_token(self) -> int:
        products = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        attention = len(self.blocks) * 2 * self.block_size * self.n_embd
        return 3 * 2 * (products + attention)
