"""The U-net's skips: who is given whose output, and that it is all they change."""

import pytest
import torch
from torch import nn

from chargpt.model.block_context import BlockContext
from chargpt.model.unet_skips import UNetSkips


@pytest.mark.parametrize(
    ("n_layer", "expected"),
    [(1, {}), (2, {}), (3, {2: 0}), (4, {3: 0}), (5, {3: 1, 4: 0}), (6, {4: 1, 5: 0}), (7, {4: 2, 5: 1, 6: 0})],
)
def test_the_last_block_is_given_the_firsts_output_and_so_on_inwards(n_layer, expected):
    skips = UNetSkips(n_layer)
    weights = [] if skips.weights_S is None else nn.init.uniform_(skips.weights_S, 0.5, 2)
    outputs = [torch.randn(2, 5, 12) for _ in range(n_layer)]
    found = {}
    for k in range(n_layer):
        added = skips(torch.zeros(2, 5, 12), outputs[:k])
        if added.any():
            (found[k],) = [i for i, w in enumerate(weights) if torch.allclose(added, w * outputs[i])]
    assert found == expected
    assert len(weights) == len(expected)
    assert bool(list(skips.parameters())) == bool(expected)


def test_the_model_passes_its_blocks_outputs_through_the_skips(small, tokens_BT):
    model = small(n_layer=4, unet_skips=UNetSkips)
    nn.init.constant_(model.unet_skips.weights_S, 0.7)
    x_BTC = model.token_embedding(tokens_BT) + model.position.embedding(torch.arange(8))
    around = BlockContext(tokens_BT, x_BTC)
    first_BTC = model.blocks[0](x_BTC, around)
    middle_BTC = model.blocks[2](model.blocks[1](first_BTC, around), around)
    last_BTC = model.blocks[3](middle_BTC + 0.7 * first_BTC, around)
    torch.testing.assert_close(model(tokens_BT), model.head(model.final_norm(last_BTC)))
