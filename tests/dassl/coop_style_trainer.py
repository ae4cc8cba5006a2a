"""A trainer as files for upstream Dassl are written: only its API."""

import os.path as osp

import torch
import torch.nn as nn
from torch.cuda.amp import GradScaler, autocast
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

WIDTH = 16


def extend_cfg(cfg):
    """Add the trainer's options to a configuration."""
    cfg.TRAINER.COOPSTYLE = CN()
    cfg.TRAINER.COOPSTYLE.N_CTX = 2
    cfg.TRAINER.COOPSTYLE.PREC = "fp32"


class PromptLearner(nn.Module):
    """Learned context, and fixed vectors per class that are saved but never loaded."""

    def __init__(self, cfg, classnames):
        super().__init__()
        self.ctx = nn.Parameter(0.02 * torch.randn(cfg.TRAINER.COOPSTYLE.N_CTX, WIDTH))
        fixed = torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(len(n))) for n in classnames])
        self.register_buffer("token_suffix", fixed + torch.eye(len(classnames), WIDTH))

    def forward(self):
        return self.token_suffix + self.ctx.mean(0)


class CustomModel(nn.Module):
    """A frozen image encoder and a text encoder of one layer each."""

    def __init__(self, cfg, classnames):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, classnames)
        self.image_encoder = nn.Linear(3 * 64, WIDTH)
        self.text_encoder = nn.Linear(WIDTH, WIDTH)

    def forward(self, image):
        image_features = F.normalize(self.image_encoder(image.flatten(1)), dim=-1)
        text_features = F.normalize(self.text_encoder(self.prompt_learner()), dim=-1)
        return 10 * image_features @ text_features.t()


@TRAINER_REGISTRY.register()
class CoOpStyle(TrainerX):
    """The trainer."""

    def check_cfg(self, cfg):
        assert cfg.TRAINER.COOPSTYLE.PREC in ["fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        self.model = CustomModel(cfg, self.dm.dataset.classnames)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = GradScaler() if cfg.TRAINER.COOPSTYLE.PREC == "amp" else None

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.scaler is not None:
            with autocast():
                output = self.model(image)
                loss = F.cross_entropy(output, label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        model_file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
        for name in self.get_model_names():
            checkpoint = load_checkpoint(osp.join(directory, name, model_file))
            state_dict = checkpoint["state_dict"]
            state_dict.pop("token_suffix", None)
            self._models[name].load_state_dict(state_dict, strict=False)
