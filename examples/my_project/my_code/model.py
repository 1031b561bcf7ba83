"""A recurrent network: a plain PyTorch module."""

from torch import Tensor, nn


class GRUModel(nn.Module):
    def __init__(self, vocab_size: int, n_embd: int, n_layer: int = 1, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.gru = nn.GRU(n_embd, n_embd, n_layer, batch_first=True, dropout=dropout)
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        y_BTC, _ = self.gru(self.embedding(tokens_BT))
        return self.head(y_BTC)
