"""One place decides number types."""

import pytest
import torch

from prompting import resolve_precision
from prompting.weights import convert_towers
from tests.clips import random_clip


@pytest.mark.parametrize(
    ("name", "device", "cpu_half", "said", "weights", "tower", "autocast"),
    [
        ("fp32", "cpu", False, "fp32", torch.float32, torch.float32, None),
        ("bf16", "cpu", False, "bf16", torch.bfloat16, torch.bfloat16, None),
        ("fp16", "cpu", False, "fp32 (asked: fp16)", torch.float16, torch.float32, None),
        ("amp", "cpu", False, "fp32 (asked: amp)", torch.float32, torch.float32, None),
        ("fp16", "cpu", True, "fp16", torch.float16, torch.float16, None),
        ("amp", "cpu", True, "amp", torch.float32, torch.float32, torch.bfloat16),
        ("fp16", "cuda", False, "fp16", torch.float16, torch.float16, None),
        ("amp", "cuda", False, "amp", torch.float32, torch.float32, torch.float16),
    ],
)
def test_half_precision_is_fp32_on_a_cpu_unless_it_is_insisted_on(
    name, device, cpu_half, said, weights, tower, autocast
):
    precision = resolve_precision(name, device, cpu_half)
    assert str(precision) == said
    assert (precision.weights_dtype, precision.tower_dtype, precision.autocast_dtype) == (weights, tower, autocast)


def test_loss_scaling_is_for_half_precision_autocast_only():
    needs = {
        (name, device): resolve_precision(name, device).needs_scaler
        for name in ("bf16", "amp")
        for device in ("cpu", "cuda")
    }
    assert needs == {("bf16", "cpu"): False, ("bf16", "cuda"): False, ("amp", "cpu"): False, ("amp", "cuda"): True}


def test_unknown_precision_names_the_choices():
    with pytest.raises(ValueError, match="fp32, fp16, bf16, amp"):
        resolve_precision("fp8", "cpu")


def test_layer_norms_and_embeddings_stay_float32():
    model = random_clip(2, transformer_layers=2)
    convert_towers(model, torch.bfloat16)
    types = {name: p.dtype for name, p in model.named_parameters()}
    low = {name for name, dtype in types.items() if dtype == torch.bfloat16}
    assert "visual.conv1.weight" in low
    assert "text_projection" in low
    assert not any("ln_" in name or "embedding" in name for name in low)
