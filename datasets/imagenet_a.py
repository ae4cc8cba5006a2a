"""ImageNetA: natural adversarial examples (D. Hendrycks et al., CVPR 2021), a test set for ImageNet models."""

from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.imagenet_variants import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    """200 of ImageNet's classes."""

    dataset_dir = "imagenet-adversarial"
    image_folder: ClassVar[str] = "imagenet-a"
