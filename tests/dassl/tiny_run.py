"""A tiny data set of generated images and a tiny trainer."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

NUM_CLASSES = 3
SPLIT_SIZES = {"train": 6, "val": 3, "test": 4}  # images per class


def make_images(root):
    """Write noise of a different tint per class as `root/SPLIT/LABEL_NUMBER.png`."""
    rng = np.random.default_rng(0)
    for split, size in SPLIT_SIZES.items():
        (root / split).mkdir(parents=True)
        for label in range(NUM_CLASSES):
            for number in range(size):
                pixels = rng.integers(0, 230, size=(12, 12, 3))
                pixels[..., label] += 25
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{label}_{number}.png")


def read_split(root, split):
    """Return the images of a split as a list of `Datum`, in the order of their names."""
    return [
        Datum(impath=str(path), label=int(path.stem[0]), domain=int(path.stem[2]) % 2, classname=f"tint {path.stem[0]}")
        for path in sorted((root / split).iterdir())
    ]


@DATASET_REGISTRY.register()
class Tints(DatasetBase):
    """The generated images; validation and unlabelled images can be left out."""

    def __init__(self, cfg):
        self.dataset_dir = cfg.DATASET.ROOT
        root = Path(cfg.DATASET.ROOT)
        train, val, test = (read_split(root, split) for split in SPLIT_SIZES)
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS, rng=random.Random(cfg.SEED))
        super().__init__(
            train_x=train,
            train_u=val if cfg.DATASET.ALL_AS_UNLABELED else None,
            val=val if cfg.DATASET.VAL_PERCENT > 0 else None,
            test=test,
        )


class TinyNet(nn.Module):
    """Pooling, dropout (so that random numbers count) and a linear layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3 * 16, num_classes)

    def forward(self, x):
        features = F.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.fc(F.dropout(features, 0.2, self.training))


@TRAINER_REGISTRY.register()
class TinyTrainer(TrainerX):
    """A trainer of `TinyNet` in the style of the CoOp family."""

    precision = "fp32"

    def build_model(self):
        self.model = TinyNet(self.num_classes).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("tiny", self.model, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if self.precision == "amp" else None

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "amp"):
            output = self.model(image)
        loss = F.cross_entropy(output.float(), label)
        if self.scaler is None:
            self.model_backward_and_update(loss)
        else:
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
