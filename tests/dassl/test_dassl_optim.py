"""Optimisers and schedules: the rates of upstream Dassl, frozen."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer

REFERENCE = json.loads((Path(__file__).parent / "reference" / "learning_rates.json").read_text())


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.classifier = nn.Linear(2, 2)


def optim_cfg(**options):
    cfg = get_cfg_default().OPTIM
    for key, value in options.items():
        cfg[key] = tuple(value) if isinstance(value, list) else value
    return cfg


def build(cfg):
    model = TwoLayers()
    optim = build_optimizer(model, cfg)
    return model, optim, build_lr_scheduler(optim, cfg)


def run(model, optim, sched, epochs):
    """Return the rate of each parameter group in each epoch."""
    rates = []
    for _ in range(epochs):
        rates.append([group["lr"] for group in optim.param_groups])
        model.classifier(model.backbone(torch.ones(1, 2))).sum().backward()
        optim.step()
        sched.step()
    return rates


def name_of(case):
    return "-".join(str(value) for key, value in case["optim"].items() if key not in ("LR", "MAX_EPOCH"))


@pytest.mark.parametrize("case", REFERENCE["one_group"], ids=name_of)
def test_every_epochs_rate_is_dassls(case):
    rates = run(*build(optim_cfg(**case["optim"])), epochs=len(case["rates"]))
    assert [rate for (rate,) in rates] == pytest.approx(case["rates"], rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("case", REFERENCE["staged"], ids=name_of)
def test_staged_rates_are_dassls(case):
    rates = run(*build(optim_cfg(**case["optim"])), epochs=len(case["rates"]))
    assert [pytest.approx(expected, rel=1e-12, abs=1e-18) for expected in case["rates"]] == rates


def test_the_reference_covers_all_combinations():
    cases = {
        (
            c["optim"]["NAME"],
            c["optim"]["LR_SCHEDULER"],
            c["optim"].get("WARMUP_TYPE"),
            c["optim"].get("WARMUP_RECOUNT"),
        )
        for c in REFERENCE["one_group"]
        if c["optim"]["MAX_EPOCH"] == 8
    }
    warmups = {(None, None)} | {(kind, recount) for kind in ("constant", "linear") for recount in (True, False)}
    assert cases == {
        (name, schedule, *warmup)
        for name in ("sgd", "adam", "adamw", "rmsprop", "amsgrad")
        for schedule in ("single_step", "multi_step", "cosine")
        for warmup in warmups
    }


def test_bmips_rates():
    cfg = optim_cfg(NAME="adam", LR=2e-3, LR_SCHEDULER="cosine", MAX_EPOCH=10, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    rates = [rate * 1e3 for (rate,) in run(*build(cfg), epochs=10)]
    expected = [0.01] + [1 + math.cos(math.pi * epoch / 10) for epoch in range(9)]
    assert rates == pytest.approx(expected)
    assert [round(rate, 3) for rate in rates] == [0.01, 2.0, 1.951, 1.809, 1.588, 1.309, 1.0, 0.691, 0.412, 0.191]


@pytest.mark.parametrize("schedule", ["single_step", "multi_step", "cosine"])
@pytest.mark.parametrize("warmup", [None, "constant", "linear"])
@pytest.mark.parametrize("stop", range(7))
def test_a_schedule_continues_from_its_plain_state(schedule, warmup, stop, tmp_path):
    cfg = optim_cfg(NAME="adam", LR=0.1, LR_SCHEDULER=schedule, STEPSIZE=[2], MAX_EPOCH=6)
    if warmup:
        cfg.WARMUP_EPOCH, cfg.WARMUP_TYPE = 2, warmup
    expected = run(*build(cfg), epochs=7)
    model, optim, sched = build(cfg)
    run(model, optim, sched, epochs=stop)
    torch.save({"optim": optim.state_dict(), "sched": sched.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model, optim, sched = build(cfg)
    optim.load_state_dict(state["optim"])
    sched.load_state_dict(state["sched"])
    assert run(model, optim, sched, epochs=7 - stop) == expected[stop:]


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "dampening": 0.1, "weight_decay": 0.01}),
        ("adam", torch.optim.Adam, {"betas": (0.7, 0.9), "eps": 1e-3, "amsgrad": False, "weight_decay": 0.01}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.7, 0.9), "eps": 1e-3, "amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.01}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.6}),
        ("radam", torch.optim.RAdam, {"betas": (0.7, 0.9), "eps": 1e-3, "decoupled_weight_decay": True}),
    ],
)
def test_options_reach_the_optimiser(name, kind, settings):
    cfg = optim_cfg(NAME=name, MOMENTUM=0.8, SGD_DAMPNING=0.1, WEIGHT_DECAY=0.01, RMSPROP_ALPHA=0.6)
    cfg.ADAM_BETA1, cfg.ADAM_BETA2, cfg.EPS = 0.7, 0.9, 1e-3
    for source in (TwoLayers(), TwoLayers().parameters()):
        optim = build_optimizer(source, cfg)
        assert type(optim) is kind
        assert settings.items() <= optim.defaults.items()


def test_given_groups_replace_the_models(recwarn):
    model, other = TwoLayers(), nn.Linear(1, 1)
    cfg = optim_cfg(NAME="sgd", STAGED_LR=True)
    optim = build_optimizer(model, cfg, param_groups=[{"params": other.parameters(), "lr": 7.0}])
    assert [group["lr"] for group in optim.param_groups] == [7.0]
    assert "STAGED_LR has no effect" in str(recwarn.pop().message)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"NAME": "sdg"}, ValueError, "sdg"),
        ({"LR_SCHEDULER": "cos"}, ValueError, "cos"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "exp"}, ValueError, "exp"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": 3}, TypeError, "list of epochs"),
        ({"STEPSIZE": 0.5}, TypeError, "integer"),
        ({"STAGED_LR": True, "NEW_LAYERS": ["clasifier"]}, ValueError, "clasifier"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        build(optim_cfg(**options))


def test_staged_rates_need_the_network():
    with pytest.raises(TypeError, match="network itself"):
        build_optimizer(TwoLayers().parameters(), optim_cfg(STAGED_LR=True, NEW_LAYERS=["classifier"]))


def as_if_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


def steps(optim, parameter, gradients):
    """Take steps under a gradient scaler, which skips those that are not finite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for gradient in gradients:
        optim.zero_grad()
        scaler.scale((parameter * torch.tensor(gradient)).sum()).backward()
        scaler.step(optim)
        scaler.update()
    return parameter.detach().clone()


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adamw"])
@pytest.mark.parametrize("skipped_first", [False, True])
def test_on_cuda_the_step_is_one_kernel_and_the_same(name, skipped_first, monkeypatch):
    gradients = [[math.inf, 1.0]] * skipped_first + [[1.0, -2.0], [0.5, 0.25], [3.0, 1.0]]
    results = []
    for fused in (False, True):
        with monkeypatch.context() as patch:
            as_if_on_cuda(patch)
            parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
            optim = build_optimizer([parameter], optim_cfg(NAME=name, LR=0.1, FUSED=fused))
        assert bool(optim.param_groups[0]["fused"]) == fused
        results.append(steps(optim, parameter, gradients))
    torch.testing.assert_close(*results)


def test_it_is_not_where_it_would_not_be_the_same(monkeypatch):
    parameter = nn.Parameter(torch.zeros(2))
    assert not build_optimizer([parameter], optim_cfg(NAME="sgd")).param_groups[0]["fused"], "not on the CPU"
    as_if_on_cuda(monkeypatch)
    assert not build_optimizer([parameter], optim_cfg(NAME="sgd", SGD_DAMPNING=1)).param_groups[0]["fused"]
    assert not build_optimizer([parameter], optim_cfg(NAME="rmsprop")).param_groups[0].get("fused")
