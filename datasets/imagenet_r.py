"""ImageNetR: art, cartoons and other renditions (D. Hendrycks et al., ICCV 2021), a test set for ImageNet models."""

from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.imagenet_variants import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    """200 of ImageNet's classes."""

    dataset_dir = "imagenet-rendition"
    image_folder: ClassVar[str] = "imagenet-r"
