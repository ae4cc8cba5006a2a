"""One place decides number types."""

import warnings

import pytest
import torch

from prompting import PRECISIONS, resolve_precision
from prompting.precision import convert_towers
from tests.clips import random_clip


def test_half_precision_on_the_cpu_is_allowed_and_warned():
    with pytest.warns(UserWarning, match="fp16 on the CPU"):
        assert resolve_precision("fp16", "cpu").tower_dtype == torch.float16


@pytest.mark.parametrize("name", [p for p in PRECISIONS if p != "fp16"])
def test_other_precisions_do_not_warn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_precision(name, "cpu")


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
