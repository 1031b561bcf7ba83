"""An optimizer: a function of the model, because it decides which parameters have which learning rate."""

from torch import nn
from torch.optim import RAdam


def two_rates(model: nn.Module, lr: float, embedding_lr: float) -> RAdam:
    """Rectified Adam with a separate learning rate for embedding tables."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    ids = {id(p) for p in embeddings}
    others = [p for p in model.parameters() if id(p) not in ids]
    return RAdam([{"params": others}, {"params": embeddings, "lr": embedding_lr}], lr=lr)
