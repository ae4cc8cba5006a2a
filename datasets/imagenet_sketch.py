"""ImageNetSketch: black and white sketches (H. Wang et al., NeurIPS 2019), a test set for ImageNet models."""

from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.imagenet_variants import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """All 1,000 classes."""

    dataset_dir = "imagenet-sketch"
    image_folder: ClassVar[str] = "images"
