"""The plain path's attention of an image tower, held to its definition written out by hand."""

import pytest
import torch
from torch.nn import functional as F

from prompting.changes import BlockChange
from prompting.prompts import VisionPrompts
from prompting.reference import PlainVisionEncoder
from prompting.towers.vision import embed_patches
from tests.clips import random_clip

TOKENS, DEEP = (torch.randn(2, 128, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
TERM = 0.1 * torch.randn(128, 128, generator=torch.Generator().manual_seed(3))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def model():
    return random_clip(vision_layers=3)


def by_hand(block, x, term=None):
    """softmax(Q K^T / sqrt(d)) of every head, then their mean."""
    attention, y = block.attn, F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
    q, k, _ = (y @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
    if term is not None:
        q = q + y @ term
    heads = []
    for part in range(attention.num_heads):
        d = q.shape[-1] // attention.num_heads
        columns = slice(part * d, (part + 1) * d)
        heads.append((q[..., columns] @ k[..., columns].transpose(1, 2) / d**0.5).softmax(dim=-1))
    return torch.stack(heads).mean(dim=0)


@pytest.mark.parametrize("term", [None, TERM], ids=["frozen", "changed query"])
def test_the_weights_are_those_of_the_definition(model, term):
    changes = {} if term is None else {0: BlockChange(terms={"q": lambda y: y @ term})}
    encoder = PlainVisionEncoder(model)
    weights, gates = encoder.attention(IMAGES, VisionPrompts(TOKENS, {1: DEEP}, changes=changes))
    assert gates == {}
    assert [tuple(layer.shape) for layer in weights] == [(2, 7, 7)] * 3  # [CLS], 2 x 2 patches, 2 prompts
    for layer in weights:
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones(2, 7))
    x = embed_patches(model.visual, IMAGES, TOKENS)
    torch.testing.assert_close(weights[0], by_hand(model.visual.transformer.resblocks[0], x, term), atol=1e-5, rtol=0)
    if term is None:  # layer 1 has its own tokens in place of those that arrive
        x = model.visual.transformer.resblocks[0](x.transpose(0, 1)).transpose(0, 1)
        x = torch.cat([x[:, :5], DEEP.expand(2, -1, -1)], dim=1)
        torch.testing.assert_close(weights[1], by_hand(model.visual.transformer.resblocks[1], x), atol=1e-5, rtol=0)


def test_a_resnet_is_refused_with_the_reason():
    resnet = random_clip(vision_layers=(1, 1, 1, 1), vision_width=64)
    with pytest.raises(ValueError, match=r"ResNet.*no attention of a \[CLS\] token"):
        PlainVisionEncoder(resnet).attention(IMAGES)
