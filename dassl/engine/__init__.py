"""The engine: trainers, their registry, the training loop."""

# ruff: noqa: F401  an index: what others import from here

from .trainer import TRAINER_REGISTRY, SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU, build_trainer
