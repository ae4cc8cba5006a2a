"""TPT: the text prompt is tuned on each test image before that image is predicted, and set back for the next one.

    python train.py --eval-only --model-dir RUN --test-time tpt ...    # from a trained context
    python train.py --eval-only --test-time tpt ...                    # from the words of CTX_INIT, untrained

Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022,
https://arxiv.org/abs/2209.07511
"""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import transforms as T
from torchvision.transforms.functional import to_tensor
from yacs.config import CfgNode

from dassl.config import cfg_default
from dassl.data import build_data_loader
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import derive_seed, seeded_random_state
from prompting import Prompts, TextPrompts
from prompting.model import Watch
from trainers.base import RANGES, PromptTrainer

cfg_default.TEST.ADAPTATION = ""  # set by --test-time: adapt the model to each test image
RANGES["TEST.ADAPTATION"] = ("", "tpt")
cfg_default.TPT = CfgNode(
    {
        "N_VIEWS": 64,  # of each image: the test transform's, and random crops
        "KEPT_SHARE": 0.1,  # share of the views, those with the least entropy, that are learned from; at least one view
        "STEPS": 1,  # of AdamW for each image
        "LR": 5e-3,
        # Mix each crop with distorted copies of it (AugMix): on, off, or auto: not on ImageNet and its variants, where
        # the published numbers are without.
        "AUGMIX": "auto",
    }
)
RANGES |= {"TPT.N_VIEWS": (2, 1000), "TPT.KEPT_SHARE": (1e-6, 1.0), "TPT.STEPS": (1, 100), "TPT.LR": (0.0, 10.0)}
RANGES["TPT.AUGMIX"] = ("auto", "on", "off")
# Methods of which all that is trained is context of the text, or makes it from the image (CoCoOp)
TRAINERS = ("CoOp", "CoCoOp", "KgCoOp", "ProGrad")
LOSS_SCALE = 1024.0  # keeps half precision's gradients from underflowing; a power of two changes nothing in float32


def check_tpt(cfg: CfgNode, eval_only: bool, model_dir: str) -> None:
    """Refuse what cannot be tuned at test time, before anything is loaded: a ValueError says why."""
    name = cfg.TRAINER.NAME
    if name not in TRAINERS:
        raise ValueError(
            f"--test-time tpt tunes context vectors of the text alone, and what {name} predicts with is not that: use "
            f"one of {', '.join(TRAINERS)}"
        )
    if not eval_only:
        raise ValueError("--test-time tpt changes how test images are predicted, not the training: add --eval-only")
    node = TRAINER_REGISTRY.get(name).node
    if not (model_dir or cfg.MODEL.INIT_WEIGHTS or cfg.TRAINER[node].CTX_INIT):
        raise ValueError(
            "--test-time tpt has nothing to start from: give a run's --model-dir, or words, as published, with "
            f"TRAINER.{node}.CTX_INIT 'a photo of a'"
        )
    if name == "CoCoOp" and not (model_dir or cfg.MODEL.INIT_WEIGHTS):
        raise ValueError("--test-time tpt of CoCoOp needs its trained meta-net: give a run's --model-dir")
    if cfg.TEST.SAVE_FEATURES:
        raise ValueError(
            "TEST.SAVE_FEATURES True: with --test-time tpt every image has text features of its own: set it to False"
        )


def tpt_name(cfg: CfgNode, model_dir: str) -> str:
    """The method's name in results and tables: TPT alone starts from words, CoOp+TPT from a run of CoOp."""
    return f"{cfg.TRAINER.NAME}+TPT" if model_dir or cfg.MODEL.INIT_WEIGHTS else "TPT"


class Views:
    """All views of an image: (n_views, 3, height, width), the test transform's first.

    The others are random resized crops, flipped half of the time, each mixed with distorted copies under AugMix. They
    follow from the seed and the image's pixels: they are the same in every class split, batch and process.

    Args:
        cfg: the run's configuration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.n_views, self.seed = cfg.TPT.N_VIEWS, cfg.SEED
        mixes, name = cfg.TPT.AUGMIX, cfg.DATASET.NAME.lower()
        self.mixes = mixes == "on" or (mixes == "auto" and not name.startswith("imagenet"))
        self.original = build_transform(cfg, is_train=False)
        self.crop = T.Compose([T.RandomResizedCrop(cfg.INPUT.SIZE), T.RandomHorizontalFlip()])
        normalize = T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
        self.normalize = normalize if "normalize" in cfg.INPUT.TRANSFORMS else nn.Identity()
        print(f"+ {self.n_views - 1} random crops of each image{', mixed by AugMix' * self.mixes}")

    def __call__(self, image: Image.Image) -> Tensor:
        with seeded_random_state(derive_seed("views", self.seed, zlib.crc32(image.tobytes()))):
            crops = [self.crop(image) for _ in range(self.n_views - 1)]
            views = torch.stack([augmix(crop) if self.mixes else to_tensor(crop) for crop in crops])
        return torch.cat([self.original(image)[None], self.normalize(views)])


def augmix(image: Image.Image) -> Tensor:
    """The image mixed with three copies, each distorted slightly one to three times, (3, height, width) in [0, 1].

    Hendrycks et al., "AugMix", ICLR 2020, https://arxiv.org/abs/1912.02781, at severity 1.
    """
    original = to_tensor(image)
    weights, share = np.random.dirichlet([1.0] * 3), np.random.beta(1.0, 1.0)
    mixed = torch.zeros_like(original)
    for weight in weights:
        copy = image
        for _ in range(random.randint(1, 3)):
            copy = distorted(copy)
        mixed += float(weight) * to_tensor(copy)
    return share * original + (1 - share) * mixed


def distorted(image: Image.Image) -> Image.Image:
    """One of AugMix's nine operations at a strength drawn for severity 1: a tenth of the largest at most."""
    strength, sign = random.uniform(0.01, 0.1), random.choice([-1, 1])
    width, height = image.size

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)

    operations = (
        lambda: ImageOps.autocontrast(image),
        lambda: ImageOps.equalize(image),
        lambda: ImageOps.posterize(image, 4 - int(strength * 4)),
        lambda: image.rotate(sign * int(strength * 30), resample=Image.Resampling.BILINEAR),
        lambda: ImageOps.solarize(image, 256 - int(strength * 256)),
        lambda: affine(1, sign * strength * 0.3, 0, 0, 1, 0),
        lambda: affine(1, 0, 0, sign * strength * 0.3, 1, 0),
        lambda: affine(1, 0, sign * int(strength * width / 3), 0, 1, 0),
        lambda: affine(1, 0, 0, 0, 1, sign * int(strength * height / 3)),
    )
    return random.choice(operations)()


def view_loader(cfg: CfgNode, loader: Any) -> Any:
    """A loader of the same images in the same order, all views of each; a batch has as many views as one had images."""
    size = max(1, cfg.DATALOADER.TEST.BATCH_SIZE // cfg.TPT.N_VIEWS)
    return build_data_loader(
        cfg, data_source=loader.dataset.data_source, batch_size=size, tfm=Views(cfg), is_train=False
    )


def tpt_parts(trainer: PromptTrainer, watch: Watch) -> dict[str, Any]:
    """What takes the place of a trainer's own parts, by attribute, in one test."""
    loader = "val_loader" if trainer.evaluating == "val" else "test_loader"
    return {"model_inference": TPT(trainer, watch), loader: view_loader(trainer.cfg, getattr(trainer, loader))}


class TPT:
    """Predicts images, each with a context tuned on its own views, on whose confident ones predictions are to agree.

    The towers are frozen and no view's feature depends on the text: features are computed once, without gradient. Where
    all images start from the same context, so are the first step's text features, of which each image takes the
    gradient. The learner's own tensors stay as they are.

    Args:
        trainer: its learner learns context vectors of the text and nothing else.
        watch: is shown what is computed, as in other evaluations.
    """

    def __init__(self, trainer: PromptTrainer, watch: Watch) -> None:
        self.model, self.settings, self.watch = trainer.model, trainer.cfg.TPT, watch
        self.start: tuple[Tensor, Tensor] | None = None  # context and its text features, with the graph between them

    def __call__(self, views: Tensor) -> Tensor:
        """Logits of images, (batch, n_views, 3, height, width) -> (batch, n_cls)."""
        features = self.model.image_features(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        text = self.text_features(self.adapt(features))
        output = self.model.compare(features[:, 0], text)
        self.watch.see(output.logits, output.image_features, text)
        return output.logits

    def text_features(self, context: Tensor) -> Tensor:
        return self.model.text_features(Prompts(TextPrompts(context)))

    @torch.enable_grad()
    def adapt(self, features: Tensor) -> Tensor:
        """A context for each image, (batch, n_vectors, width), from its views' normalised features.

        Args:
            features: (batch, n_views, embed_dim), the image itself first. Where the context depends on the image
                (CoCoOp), it starts as that of the first view.
        """
        learner, settings = self.model.prompt_learner, self.settings
        n_kept = max(1, int(features.shape[1] * settings.KEPT_SHARE))
        conditioned = learner.condition(features[:, 0]).text.context.detach() if learner.varies_per_image else None
        if conditioned is None and self.start is None:
            context = learner().text.context.detach().requires_grad_()
            self.start = context, self.text_features(context)
        contexts = []
        for number, views in enumerate(features):
            start = self.start[0] if conditioned is None else conditioned[number]
            context = start.detach().clone().requires_grad_()
            optimizer = torch.optim.AdamW([context], lr=settings.LR)
            for step in range(settings.STEPS):
                shared = step == 0 and conditioned is None
                source, text = self.start if shared else (context, self.text_features(context))
                logits = self.model.compare(views, text).logits  # (n_views, n_cls)
                if step == 0:
                    kept = entropy(logits.detach().log_softmax(dim=1)).topk(n_kept, largest=False).indices
                (gradient,) = torch.autograd.grad(
                    LOSS_SCALE * marginal_entropy(logits[kept]), source, retain_graph=shared
                )
                context.grad = gradient / LOSS_SCALE
                optimizer.step()
            contexts.append(context.detach())
        return torch.stack(contexts)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy in nats of each row, (..., n_cls) -> (...)."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction of some views, (n_views, n_cls) -> () (eq. 3 of the paper)."""
    mean = logits.log_softmax(dim=1).logsumexp(dim=0) - np.log(len(logits))
    return entropy(mean.clamp(min=torch.finfo(mean.dtype).min))
