"""Frozen products: every kernel computes F.linear's values and gradient, and none is used that is wrong or slow."""

import json
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from clip.model import QuickGELU
from torch import nn
from torch.nn import functional as F

from prompting.towers import attention
from prompting.towers.attention import (
    KERNELS,
    FrozenProduct,
    KernelChooser,
    fastest,
    measure,
    prepacked_linear,
    run_mlp,
)


@pytest.fixture
def product():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 32, generator=generator)
    return x, torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)


@pytest.fixture
def small_products_too(monkeypatch):
    monkeypatch.setattr(attention, "MIN_FLOPS", 0)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_f_linear_forward_and_backward(product, name, with_bias):
    x, weight, bias = product
    bias = bias if with_bias else None
    values, gradients = [], []
    for run in (lambda x: F.linear(x, weight, bias), lambda x: FrozenProduct.apply(x, weight, bias, KERNELS[name])):
        leaf = x.clone().requires_grad_()
        values.append(run(leaf.transpose(0, 1)))  # rows that do not lie one after the other
        gradients += torch.autograd.grad(values[-1].square().sum(), leaf)
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-2)


def test_a_kernel_that_computes_something_else_is_never_used(product, monkeypatch):
    _, weight, _ = product
    monkeypatch.setitem(KERNELS, "conv", lambda x, w, b: F.linear(x, w, b) * 1.001)
    monkeypatch.delitem(KERNELS, "packed")
    monkeypatch.setitem(KERNELS, "pointwise", lambda x, w, b: torch.ops.mkldnn.no_such_operator(x, w, b))
    assert list(measure(9, weight)) == ["native"]


@pytest.mark.parametrize(
    ("seconds", "auto", "onednn", "packed"),
    [
        ({"native": 1.0, "conv": 0.98, "pointwise": 1.2}, "native", "conv", "native"),  # not clearly faster
        ({"native": 1.0, "conv": 0.8, "pointwise": 0.5}, "pointwise", "pointwise", "pointwise"),
        ({"native": 1.0, "pointwise": 0.5, "packed": 0.4}, "pointwise", "pointwise", "packed"),
        ({"native": 1.0, "conv": 2.0, "packed": 1.5}, "native", "conv", "native"),
        ({"native": 1.0}, "native", "native", "native"),
    ],
)
def test_the_choice_follows_the_times(seconds, auto, onednn, packed):
    assert [fastest(seconds, backend) for backend in ("auto", "onednn", "packed")] == [auto, onednn, packed]


def test_times_are_measured_once_per_machine(product, small_products_too, tmp_path, monkeypatch):
    x, weight, _ = product
    file = tmp_path / "folder/linear.json"
    counted = []
    monkeypatch.setattr(attention, "measure", lambda *args: counted.append(args) or {"native": 1.0, "conv": 0.1})
    for _ in range(2):  # a second process finds the first one's times
        chooser = KernelChooser("auto", file)
        assert chooser.kernel(x, weight) is KERNELS["conv"]
    assert len(counted) == 1
    assert chooser.report() == {"backend": "auto", "kernels": {"32x32x48": "conv"}}
    (key,) = json.loads(file.read_text())
    assert torch.__version__ in key
    assert "threads" in key
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    KernelChooser("auto", file).kernel(x, weight)
    assert len(counted) == 2


@pytest.mark.parametrize(("left", "without_gradient"), [(1 << 40, "packed"), (0, "pointwise")])
def test_auto_packs_weights_only_without_gradient_and_where_memory_is_left(
    product, small_products_too, tmp_path, monkeypatch, left, without_gradient
):
    x, weight, _ = product
    monkeypatch.setattr(attention, "memory_left", lambda: left)
    monkeypatch.setattr(attention, "measure", lambda *args: {"native": 1.0, "pointwise": 0.5, "packed": 0.4})
    chooser = KernelChooser("auto", tmp_path / "linear.json")
    with torch.enable_grad():
        assert chooser.kernel(x, weight) is KERNELS["pointwise"]
    with torch.no_grad():
        assert chooser.kernel(x, weight) is KERNELS[without_gradient]
    assert chooser.report()["kernels"] == {"32x32x48": "pointwise", "32x32x48 without gradient": without_gradient}


@pytest.mark.parametrize("content", ["{", "[]", '{"KEY": 3}', '{"KEY": {"native": "fast"}}', '{"KEY": {"conv": 1.0}}'])
def test_a_damaged_file_is_measured_again(product, small_products_too, tmp_path, content):
    x, weight, _ = product
    key = f"{attention.machine_key()}|32x32x48"
    file = tmp_path / "linear.json"
    file.write_text(content.replace("KEY", key))
    KernelChooser("auto", file).kernel(x, weight)
    assert json.loads(file.read_text())[key]["native"] > 0


def test_a_folder_that_cannot_be_written_is_no_error(product, small_products_too, tmp_path):
    x, weight, _ = product
    (tmp_path / "file").write_text("in the way")
    chooser = KernelChooser("onednn", tmp_path / "file/linear.json")
    assert chooser.kernel(x, weight) in KERNELS.values()


@pytest.mark.parametrize("change", ["small", "bfloat16", "trained weight", "autocast", "native"])
def test_where_only_f_linear_is_used(product, change, tmp_path, monkeypatch):
    x, weight, _ = product
    if change != "small":
        monkeypatch.setattr(attention, "MIN_FLOPS", 0)
    if change == "bfloat16":
        x, weight = x.bfloat16(), weight.bfloat16()
    weight.requires_grad_(change == "trained weight")
    chooser = KernelChooser("native" if change == "native" else "onednn", tmp_path / "linear.json")
    with torch.autocast("cpu", enabled=change == "autocast"):
        assert chooser.kernel(x, weight) is F.linear
    assert not (tmp_path / "linear.json").exists()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="choose one of auto, native, onednn, packed"):
        attention.CHOOSER.use("mkl")


def test_a_weight_is_packed_once_until_somebody_writes_to_it(product, monkeypatch):
    x, weight, bias = product
    packed = []
    reorder = torch.ops.mkldnn._reorder_linear_weight
    fake = SimpleNamespace(
        _reorder_linear_weight=lambda *args: packed.append(args) or reorder(*args),
        _linear_pointwise=torch.ops.mkldnn._linear_pointwise,
    )
    monkeypatch.setattr(torch.ops, "mkldnn", fake)
    weight = torch.nn.Parameter(weight, requires_grad=False)
    for rows in (slice(0, 16), slice(16, 48), slice(0, 16)):  # parts of one weight, as Q, K and V are
        torch.testing.assert_close(prepacked_linear(x, weight[rows], bias[rows]), F.linear(x, weight[rows], bias[rows]))
    assert len(packed) == 2
    with torch.no_grad():
        weight.copy_(2 * weight)  # as loading a checkpoint does
    torch.testing.assert_close(prepacked_linear(x, weight[:16], None), F.linear(x, weight[:16]))
    assert len(packed) == 3


@pytest.mark.parametrize("name", KERNELS)
def test_an_mlp_in_one_operation_equals_its_parts(product, name, monkeypatch):
    monkeypatch.setattr(attention.CHOOSER, "kernel", lambda x, weight: KERNELS[name])
    x, weight, bias = product
    mlp = nn.Sequential(OrderedDict(c_fc=nn.Linear(32, 48), gelu=QuickGELU(), c_proj=nn.Linear(48, 32)))
    mlp.requires_grad_(False)
    mlp.c_fc.weight.copy_(weight)
    mlp.c_fc.bias.copy_(bias)
    results = []
    for run in (mlp, lambda x: run_mlp(mlp, x)):
        leaf = x.clone().requires_grad_()
        values = run(leaf)
        results.append((values, *torch.autograd.grad(values.square().sum(), leaf)))
        with torch.no_grad():
            torch.testing.assert_close(run(x), values)  # works in place where nothing is kept
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
