"""Linear probe: logistic regression on frozen image features, its regularisation chosen on validation images.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, appendix A.3,
https://arxiv.org/abs/2103.00020, with the search that CoOp's code (``lpclip``) makes for few shots:

    minimise over w, b:   sum over images of CE(w f + b)  +  |w|^2 / (2 C)

C is searched in powers of 100 from 1e-6 to 1e6, then around the best in BINARY_STEPS steps that halve the interval's
logarithm. Features are not augmented (``INPUT.TRANSFORMS ["normalize"]``). They are normalised, as in the code of LP++
(CVPR 2024); CoOp's keeps their norms.

The classifier has weights for the classes that it was trained on and for no others: other class lists are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import Output
from trainers.base import add_trainer_config
from trainers.heads import MAX_VIEWS, FittedTrainer, HeadCLIP, places_of, validation_features

COARSE = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
add_trainer_config(
    "LINEARPROBE",
    ranges={"C": (0.0, 1e12), "BINARY_STEPS": (0, 100), "MAX_ITERATIONS": (1, 10**6), "VIEWS": (1, MAX_VIEWS)},
    C=0.0,  # inverse strength of the regularisation; 0: searched on the validation images
    BINARY_STEPS=8,  # of the search, after the coarse one
    MAX_ITERATIONS=1000,  # of L-BFGS
    VIEWS=1,  # views of each training image, all of which are fitted
    PREC="fp16",  # fp32, fp16, bf16, amp
)


class Linear(nn.Module):
    """A classifier of the trained classes, which starts at zero: weight (n_cls, width), bias (n_cls,)."""

    def __init__(self, width: int, classnames: Sequence[str]) -> None:
        super().__init__()
        self.classnames = tuple(classnames)
        self.weight = nn.Parameter(torch.zeros(len(self.classnames), width))
        self.bias = nn.Parameter(torch.zeros(len(self.classnames)))


class LinearCLIP(HeadCLIP):
    """Image features and a linear classifier in place of the text; it refuses classes that it was not trained on."""

    def set_classes(self, classnames: Sequence[str]) -> None:
        trained = self.head.classnames
        places = places_of(classnames, trained)
        if -1 in places:
            raise ValueError(
                f"the classifier of {len(trained)} trained classes ({trained[0]!r} ...) does not know "
                f"{classnames[places.index(-1)]!r}: evaluate on classes that it was trained on, or use a method that "
                "serves new ones, such as CLIP_Adapter or CoOp"
            )
        super().set_classes(classnames)

    def compare(self, image: Tensor, text: Tensor) -> Output:
        logits = image @ self.of_classes(self.head.weight).t() + self.of_classes(self.head.bias[:, None])[:, 0]
        return Output(logits, image, F.normalize(text, dim=-1))


def logistic_regression(
    features: Tensor, labels: Tensor, n_classes: int, c: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Weight (n_cls, width) and bias (n_cls,) that minimise the loss above, in float64, by SciPy's L-BFGS from zero.

    Objective, start and stopping rules are those of scikit-learn's ``LogisticRegression`` for more than two classes.
    """
    features, (n, width) = features.double(), features.shape

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        tensors = torch.from_numpy(flat).to(features.device).view(n_classes, width + 1).requires_grad_()
        with torch.enable_grad():
            weight, bias = tensors[:, :width], tensors[:, width]
            loss = F.cross_entropy(features @ weight.t() + bias, labels) + weight.square().sum() / (2 * c * n)
        (gradient,) = torch.autograd.grad(loss, tensors)
        return loss.item(), gradient.flatten().cpu().numpy()

    options = {"maxiter": max_iterations, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(n_classes * (width + 1))
    found = minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options)
    solution = torch.from_numpy(found.x).to(features.device).view(n_classes, width + 1)
    return solution[:, :width], solution[:, width]


@TRAINER_REGISTRY.register()
class LinearProbe(FittedTrainer):
    """Logistic regression on image features."""

    node = "LINEARPROBE"
    model_class = LinearCLIP
    serves_new_classes = False
    searched = "C"
    instead = "set TRAINER.LINEARPROBE.C, for example to 0.316, which is that of CLIP's own example"

    def build_head(self, width: int, classnames: Sequence[str], generator: torch.Generator | None) -> Linear:
        return Linear(width, classnames)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Search C as CoOp's code does, and keep the classifier of the last step."""
        s, n_classes = self.settings, len(self.train_classnames)
        images = F.normalize(features, dim=-1).flatten(0, 1)
        labels = labels.repeat(len(features))

        @functools.cache
        def fitted(log_c: float) -> tuple[Tensor, Tensor]:
            weight, bias = logistic_regression(images, labels, n_classes, 10**log_c, s.MAX_ITERATIONS)
            return weight.float(), bias.float()

        if s.C:
            chosen = float(np.log10(s.C))
        else:
            val_images, val_labels = validation_features(self)

            @functools.cache
            def accuracy(log_c: float) -> float:
                weight, bias = fitted(log_c)
                return 100 * ((val_images @ weight.t() + bias).argmax(dim=1) == val_labels).double().mean().item()

            chosen = max(map(float, np.log10(COARSE)), key=accuracy)  # the first of the best
            left, right = chosen - 1, chosen + 1
            for _ in range(s.BINARY_STEPS):
                middle = (left + right) / 2
                if accuracy(left) < accuracy(right):
                    chosen, left = right, middle
                else:
                    chosen, right = left, middle
            found = {"C": 10**chosen, "val_accuracy": accuracy(chosen)}
            self.notes["searched"] = found
            print(f"Searched on {len(val_labels)} validation images: {found}")
        weight, bias = fitted(chosen)
        self.model.head.weight.copy_(weight)
        self.model.head.bias.copy_(bias)
