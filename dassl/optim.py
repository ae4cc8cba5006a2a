"""Optimisers and learning rate schedules by name; a schedule steps once per epoch, with an optional warm-up first."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

from dassl import keep_old_paths

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]
AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]
FUSED = ("adam", "amsgrad", "sgd", "adamw")  # those that PyTorch has as one kernel

RAdam = partial(torch.optim.RAdam, decoupled_weight_decay=True)  # Dassl has it as dassl.optim.radam.RAdam


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> Optimizer:
    """Build the optimiser `optim_cfg.NAME` of a network or its parameters, or of `param_groups` where they are given.

    Raises ValueError for an unknown name, also in NEW_LAYERS, and TypeError where STAGED_LR is set without a network.
    """
    cfg = optim_cfg
    if cfg.NAME not in AVAI_OPTIMS:
        raise ValueError(f"optim must be one of {AVAI_OPTIMS}, but got {cfg.NAME}")
    if param_groups is not None:
        if cfg.STAGED_LR:
            warnings.warn("OPTIM.STAGED_LR has no effect where param_groups are given", stacklevel=2)
    elif cfg.STAGED_LR:
        param_groups = _staged_groups(model, cfg)
    else:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    groups = []
    for group in param_groups:
        if isinstance(group, dict):  # its parameters in a list: they may come from a generator, which can be read once
            params = group["params"]
            group = {**group, "params": [params] if isinstance(params, torch.Tensor) else list(params)}
        groups.append(group)

    betas = (cfg.ADAM_BETA1, cfg.ADAM_BETA2)
    make = {
        "adam": partial(torch.optim.Adam, betas=betas, eps=cfg.EPS),
        "amsgrad": partial(torch.optim.Adam, betas=betas, eps=cfg.EPS, amsgrad=True),
        "adamw": partial(torch.optim.AdamW, betas=betas, eps=cfg.EPS),
        "radam": partial(RAdam, betas=betas, eps=cfg.EPS),
        "rmsprop": partial(torch.optim.RMSprop, momentum=cfg.MOMENTUM, alpha=cfg.RMSPROP_ALPHA),
        "sgd": partial(torch.optim.SGD, momentum=cfg.MOMENTUM, dampening=cfg.SGD_DAMPNING, nesterov=cfg.SGD_NESTEROV),
    }[cfg.NAME]
    # One kernel for the step, on CUDA, where launching one per tensor takes longer than it; not with dampening, which
    # the first step of a momentum leaves out: with the zeros below it would not.
    tensors = [tensor for group in groups for tensor in (group["params"] if isinstance(group, dict) else [group])]
    fused = cfg.FUSED and cfg.NAME in FUSED and all(tensor.is_cuda for tensor in tensors)
    fused = fused and not (cfg.NAME == "sgd" and cfg.SGD_DAMPNING)
    optim = make(groups, lr=cfg.LR, weight_decay=cfg.WEIGHT_DECAY, **({"fused": True} if fused else {}))
    if fused and cfg.NAME == "sgd" and cfg.MOMENTUM:
        # A start from momentum 0 changes nothing. Without it, PyTorch's fused SGD would go on from uninitialised memory
        # where a gradient scaler skips its first step.
        for group in optim.param_groups:
            for tensor in group["params"]:
                optim.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)
    return optim


def _staged_groups(model: nn.Module | Iterable[Any], cfg: CfgNode) -> list[dict[str, Any]]:
    """Return two groups: layers at LR * BASE_LR_MULT, and those of NEW_LAYERS at LR."""
    if not isinstance(model, nn.Module):
        raise TypeError("OPTIM.STAGED_LR needs the network itself, not its parameters")
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = [cfg.NEW_LAYERS] if isinstance(cfg.NEW_LAYERS, str) else list(cfg.NEW_LAYERS)
    layers = dict(model.named_children())
    missing = [name for name in new_layers if name not in layers]
    if missing:
        raise ValueError(f"OPTIM.NEW_LAYERS names {missing}, but the network has {list(layers)}")
    if not new_layers:
        warnings.warn("OPTIM.NEW_LAYERS is empty: all layers learn at LR * BASE_LR_MULT", stacklevel=3)
    base = [p for name, layer in layers.items() if name not in new_layers for p in layer.parameters()]
    new = [p for name in layers if name in new_layers for p in layers[name].parameters()]
    return [{"params": base, "lr": cfg.LR * cfg.BASE_LR_MULT}, {"params": new}]


class _WarmupScheduler(LRScheduler):
    """Sets `warmup_lr()` for `warmup_epoch` epochs, then hands over to another scheduler of the same optimiser."""

    def __init__(self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1) -> None:
        self.successor, self.warmup_epoch = successor, warmup_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return self.warmup_lr() if self.last_epoch < self.warmup_epoch else self.successor.get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.successor.load_state_dict(state_dict["successor"])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "successor"})


class ConstantWarmupScheduler(_WarmupScheduler):
    """Warm-up at the rate `cons_lr`."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, cons_lr: float, last_epoch: int = -1
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_WarmupScheduler):
    """Warm-up: `min_lr` in the first epoch, then the passed share of the warm-up times the full rate."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, min_lr: float, last_epoch: int = -1
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Build the schedule `optim_cfg.LR_SCHEDULER` with its warm-up; `optim_cfg` is the section OPTIM of a config.

    Raises ValueError for an unknown schedule or warm-up, and TypeError where STEPSIZE does not fit the schedule.
    """
    cfg, steps = optim_cfg, optim_cfg.STEPSIZE
    if cfg.LR_SCHEDULER not in AVAI_SCHEDS:
        raise ValueError(f"scheduler must be one of {AVAI_SCHEDS}, but got {cfg.LR_SCHEDULER}")
    if cfg.LR_SCHEDULER == "cosine":
        scheduler: LRScheduler = CosineAnnealingLR(optimizer, float(cfg.MAX_EPOCH))
    elif cfg.LR_SCHEDULER == "multi_step":
        if not isinstance(steps, (list, tuple)):
            raise TypeError(f"OPTIM.STEPSIZE of multi_step must be a list of epochs, but got {steps!r}")
        scheduler = MultiStepLR(optimizer, milestones=steps, gamma=cfg.GAMMA)
    else:
        size = steps[-1] if isinstance(steps, (list, tuple)) else steps
        if not isinstance(size, int):
            raise TypeError(f"OPTIM.STEPSIZE of single_step must be an integer, but got {size!r}")
        scheduler = StepLR(optimizer, step_size=size if size > 0 else cfg.MAX_EPOCH, gamma=cfg.GAMMA)

    if cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = cfg.WARMUP_EPOCH
    if cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, cfg.WARMUP_EPOCH, cfg.WARMUP_CONS_LR)
    if cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, cfg.WARMUP_EPOCH, cfg.WARMUP_MIN_LR)
    raise ValueError(f"OPTIM.WARMUP_TYPE must be linear or constant, but got {cfg.WARMUP_TYPE}")


keep_old_paths(__name__, "dassl.optim.lr_scheduler", "dassl.optim.optimizer", "dassl.optim.radam")
