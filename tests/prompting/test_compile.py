"""TRAIN.COMPILE: what torch.compile makes of the frozen blocks is what they compute without."""

import functools
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from prompting.towers import attention
from tests.clips import random_clip
from tests.trainers.small_runs import build, stir, trained_tensors


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is compiled before, or left so."""
    torch._dynamo.reset()
    counters.clear()
    attention._compiled.cache_clear()
    yield
    attention.set_compile(False)
    attention._compiled.cache_clear()


def block_numbers(block, rows, compiled):
    """What one block computes of some rows, in two pieces, and the gradient."""
    attention.set_compile(compiled)
    x = torch.randn(1, rows, 64, generator=torch.Generator().manual_seed(rows)).requires_grad_()
    qkv = attention.project(block, x)
    y = attention.finish(block, x, attention.attend(*qkv.unbind(2)))
    y.square().sum().backward()
    return qkv.detach(), y.detach(), x.grad


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_block_computes_what_it_does_without():
    clip_model = random_clip(1, vision_width=64, transformer_width=64, transformer_heads=1, transformer_layers=1)
    block = clip_model.transformer.resblocks[0]
    for rows in (5, 9):
        for ours, expected in zip(*(block_numbers(block, rows, compiled) for compiled in (True, False)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert counters["stats"]["unique_graphs"] == 2, "once for any number of rows"


def step_of(case, precision, compiled):
    """Logits and gradients of a step, then of another batch and class list, then logits without gradients."""
    options = {f"TRAINER.{case}.PREC": precision, "TRAIN.CPU_HALF": True, "TRAIN.COMPILE": compiled}
    trainer = build(case, **options)
    assert attention._compiles is compiled
    stir(trainer)
    results = []
    for classes, n_images in ((["cat", "dog"], 2), (["cat", "yellow lady's slipper", "crane"], 3)):
        trainer.model.set_classes(classes)
        images = torch.randn(n_images, 3, 48, 48, generator=torch.Generator().manual_seed(2))
        logits = trainer.model(images)
        logits.square().sum().backward()
        with torch.no_grad():
            results += [logits.detach(), trainer.model(images)]
    return [*results, *(p.grad for p in trained_tensors(trainer).values())]


@pytest.mark.parametrize("precision", ["fp32", "amp", "bf16"])
@pytest.mark.parametrize("case", ["BMIP", "MMA"])
def test_towers_run_through_what_is_compiled(case, precision, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # traced, not compiled
    ours, expected = (step_of(case, precision, compiled) for compiled in (True, False))
    for one, other in zip(ours, expected, strict=True):
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        assert cosine > (0.999999 if precision == "fp32" else 0.98)
    assert 4 <= counters["stats"]["unique_graphs"] <= attention.MAX_VARIANTS


def test_a_run_without_a_compiler_says_what_to_set(monkeypatch):
    def failing(function, **options):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(ValueError, match=r"TRAIN.COMPILE True: torch.compile failed here \(no compiler\); set it to F"):
        step_of("BMIP", "fp32", True)
