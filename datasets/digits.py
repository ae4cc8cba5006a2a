"""Digits: 1,797 handwritten digits that come with the code, so that everything runs on real images at once."""

from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset


@DATASET_REGISTRY.register()
class Digits(FewShotDataset):
    """Test set of UCI's handwritten digits (E. Alpaydin, C. Kaynak, 1998); its data root is `assets`."""

    dataset_dir = "digits"
    image_folder = "images"
    split_file = "split_digits.json"
    split_help = (
        "It comes with the code (--root assets); to make it: python -m tools.bundled_data digits --out assets/digits"
    )
    template = "a photo of the {}."
