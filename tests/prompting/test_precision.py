"""One place decides number types."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prompting import resolve_precision
from prompting.towers import attention, text, vision
from prompting.weights import convert_towers
from tests.clips import random_clip
from tests.trainers.small_runs import build, stir, trained_tensors


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


# Half copies of frozen matrices under autocast


def step_of(case, monkeypatch=None):
    """Logits and gradients under autocast, and how often a frozen matrix was cast; of a second step."""
    trainer = build(case, **{f"TRAINER.{case.upper()}.PREC": "amp", "TRAIN.CPU_HALF": True})
    stir(trainer)
    if monkeypatch is not None:
        for module in (attention, text, vision):
            monkeypatch.setattr(module, "cast_once", lambda weight: weight)
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    trainer.model(images)
    frozen = {p.data_ptr() for p in trainer.model.parameters() if not p.requires_grad}

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.count += operation.overloadpacket.__name__ == "_to_copy" and args[0].data_ptr() in frozen
            return operation(*args, **(kwargs or {}))

    with Casts() as casts:
        logits = trainer.model(images)
    logits.square().sum().backward()
    return casts.count, [logits, *(p.grad for p in trained_tensors(trainer).values())]


@pytest.mark.parametrize("case", ["BMIP", "MaPLe", "CoCoOp"])
def test_under_autocast_frozen_matrices_are_cast_once_to_the_same_bits(case, monkeypatch):
    casts, results = step_of(case)
    many, expected = step_of(case, monkeypatch)
    assert casts <= 3  # before layer 0: the patches' convolution, [CLS] and the positions
    assert many > 20
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(results, expected, strict=True))


def test_copies_follow_their_weight():
    weight = torch.randn(6, 4)
    assert attention.cast_once(weight) is weight, "no autocast"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        part = attention.cast_once(weight[2:4])
        assert part.dtype == torch.bfloat16
        assert torch.equal(part, weight[2:4].bfloat16())
        assert torch.equal(attention.cast_once(weight.t()), weight.t().bfloat16())
        assert part.data_ptr() == attention.cast_once(weight)[2:].data_ptr(), "one copy for all views"
        weight.mul_(2)
        assert torch.equal(attention.cast_once(weight[2:4]), weight[2:4].bfloat16())
        trained = torch.nn.Parameter(weight)
        assert attention.cast_once(trained) is trained
    with torch.autocast("cpu", dtype=torch.float16):
        assert attention.cast_once(weight).dtype == torch.float16
    copy = weakref.ref(attention._cast[weight][1])
    del weight, trained
    gc.collect()
    assert copy() is None
