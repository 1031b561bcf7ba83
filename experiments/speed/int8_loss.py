"""Measures the loss of a trained model with and without int8 weights, one token at a time.

python experiments/speed/int8_loss.py outputs/gpt_nano/...
"""

import argparse

import torch

import chargpt
from chargpt.data.corpus import TinyShakespeare
from chargpt.inference.context import Context

TOKENS = 20_000  # of the validation text


@torch.no_grad()
def loss(model, tokens_N: torch.Tensor, quantize: str | None) -> float:
    """Mean loss in nats per token. The model is called as during sampling, on 8 parts of the text in parallel."""
    tokens_BT = tokens_N[: TOKENS // 8 * 8].view(8, -1).long()
    context, total = Context(model, 8, quantize=quantize), 0.0
    for t in range(tokens_BT.shape[1] - 1):
        logits_BV = context.extend(tokens_BT[:, t : t + 1])
        total += torch.nn.functional.cross_entropy(logits_BV, tokens_BT[:, t + 1]).item()
    return total / (tokens_BT.shape[1] - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run directory")
    trained = chargpt.load(parser.parse_args().run)
    text = TinyShakespeare().read()
    tokens_N = trained.tokenizer.encode(text[int(0.9 * len(text)) :])
    float_loss, int8_loss = (loss(trained.model, tokens_N, quantize) for quantize in (None, "int8"))
    print(f"loss {float_loss:.4f}, {int8_loss:.4f} with int8: {int8_loss - float_loss:+.4f} nats per token")


if __name__ == "__main__":
    main()
