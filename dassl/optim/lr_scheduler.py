"""Learning rate schedules, stepped once per epoch, with an optional warm-up before them."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]


class _WarmupScheduler(LRScheduler):
    """Sets its own rates for `warmup_epoch` epochs, then hands over to another scheduler of the same optimiser."""

    def __init__(self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self) -> list[float]:
        """Return the rate of each parameter group in the epoch `self.last_epoch` of the warm-up."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        """Return the rate of each parameter group."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return self.warmup_lr()

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next epoch."""
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values, with the successor's inside."""
        state = super().state_dict()
        state["successor"] = self.successor.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        super().load_state_dict(own)


class ConstantWarmupScheduler(_WarmupScheduler):
    """Warm-up at the rate `cons_lr`."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, cons_lr: float, last_epoch: int = -1
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        """Return `cons_lr` for each parameter group."""
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_WarmupScheduler):
    """Warm-up from `min_lr`, then in equal steps towards the full rate."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, min_lr: float, last_epoch: int = -1
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        """Return `min_lr` in the first epoch, then the passed share of the warm-up times the full rate."""
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Build the schedule `optim_cfg.LR_SCHEDULER` with its warm-up.

    Args:
        optimizer: the optimiser whose rates it sets.
        optim_cfg: the section OPTIM of a config.

    Raises:
        ValueError: if the schedule or the kind of warm-up is unknown.
        TypeError: if STEPSIZE does not fit the schedule.
    """
    scheduler = _build_main(optimizer, optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR)
    if optim_cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR)
    raise ValueError(f"OPTIM.WARMUP_TYPE must be linear or constant, but got {optim_cfg.WARMUP_TYPE}")


def _build_main(optimizer: Optimizer, cfg: CfgNode) -> LRScheduler:
    if cfg.LR_SCHEDULER not in AVAI_SCHEDS:
        raise ValueError(f"scheduler must be one of {AVAI_SCHEDS}, but got {cfg.LR_SCHEDULER}")
    if cfg.LR_SCHEDULER == "cosine":
        return CosineAnnealingLR(optimizer, float(cfg.MAX_EPOCH))
    if cfg.LR_SCHEDULER == "multi_step":
        if not isinstance(cfg.STEPSIZE, (list, tuple)):
            raise TypeError(f"OPTIM.STEPSIZE of multi_step must be a list of epochs, but got {cfg.STEPSIZE!r}")
        return MultiStepLR(optimizer, milestones=cfg.STEPSIZE, gamma=cfg.GAMMA)
    stepsize = cfg.STEPSIZE[-1] if isinstance(cfg.STEPSIZE, (list, tuple)) else cfg.STEPSIZE
    if not isinstance(stepsize, int):
        raise TypeError(f"OPTIM.STEPSIZE of single_step must be an integer, but got {stepsize!r}")
    return StepLR(optimizer, step_size=stepsize if stepsize > 0 else cfg.MAX_EPOCH, gamma=cfg.GAMMA)
