"""Tests of the U-net skip connections: source and target blocks, and the output of a model with skips."""

import pytest
import torch
from torch import nn

from chargpt.model.block_context import BlockContext
from chargpt.model.unet_skips import UNetSkips


@pytest.mark.parametrize(
    ("n_layer", "expected"),
    [(1, {}), (2, {}), (3, {2: 0}), (4, {3: 0}), (5, {3: 1, 4: 0}), (6, {4: 1, 5: 0}), (7, {4: 2, 5: 1, 6: 0})],
)
def test_skips_connect_the_first_block_to_the_last_and_so_on_inwards(n_layer, expected):
    skips = UNetSkips(n_layer)
    weights = [] if skips.weights_S is None else nn.init.uniform_(skips.weights_S, 0.5, 2)
    outputs = [torch.randn(2, 5, 12) for _ in range(n_layer)]
    sources = {}
    for k in range(n_layer):
        added = skips(torch.zeros(2, 5, 12), outputs[:k])
        if added.any():
            (sources[k],) = [i for i, w in enumerate(weights) if torch.allclose(added, w * outputs[i])]
    assert sources == expected
    assert len(weights) == len(expected)
    assert bool(list(skips.parameters())) == bool(expected)


def test_the_model_adds_the_skips_to_the_inputs_of_its_blocks(small, tokens_BT):
    model = small(n_layer=4, unet_skips=UNetSkips)
    nn.init.constant_(model.unet_skips.weights_S, 0.7)
    x_BTC = model.token_embedding(tokens_BT) + model.position.embedding(torch.arange(8))
    context = BlockContext(tokens_BT, x_BTC)
    first_BTC = model.blocks[0](x_BTC, context)
    middle_BTC = model.blocks[2](model.blocks[1](first_BTC, context), context)
    last_BTC = model.blocks[3](middle_BTC + 0.7 * first_BTC, context)
    torch.testing.assert_close(model(tokens_BT), model.head(model.final_norm(last_BTC)))
