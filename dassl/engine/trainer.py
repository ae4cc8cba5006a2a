"""All trainers in one place, under the module name that Dassl has them under."""

from .base import TrainerBase
from .loops import TrainerX, TrainerXU
from .net import SimpleNet
from .simple import SimpleTrainer

__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]
