"""The data sets that come with the code, so that everything runs on real images at once; their data root is `assets`.

Digits: the test set of UCI's handwritten digits (E. Alpaydin, C. Kaynak, 1998), 1,797 images.

Emoji in four drawing styles: domain generalisation and transfer without a download. Kinds: is this a mammal, a book, a
tool ...? Train on some drawings of each, test on others; the names of the drawings are dealt out the same way in every
style. Concepts: is this a koala, a hammer ...? One training drawing each, in Noto's style; the test drawings are of the
other styles. Noto is the source style; Fluent, its flat and its high-contrast version are the styles to generalise to,
named as the variants of ImageNet are.
"""

from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset


@DATASET_REGISTRY.register()
class Digits(FewShotDataset):
    """Handwritten digits."""

    dataset_dir = "digits"
    image_folder: ClassVar[str] = "images"
    split_file: ClassVar[str] = "split_digits.json"
    split_help: ClassVar[str] = (
        "It comes with the code (--root assets); to make it: python -m tools.bundled_data digits --out assets/digits"
    )
    template = "a photo of the {}."


class Emoji(FewShotDataset):
    """What the emoji data sets share."""

    dataset_dir = "emoji"
    image_folder: ClassVar[str] = "images"
    split_help: ClassVar[str] = (
        "It comes with the code (--root assets); to make it again see: python -m tools.bundled_data --help"
    )


EMOJI = {  # data set: (its split file, what it is)
    "EmojiKinds": ("split_emoji_kinds_noto.json", "24 kinds in Noto's style."),
    "EmojiKindsFluent": ("split_emoji_kinds_fluent.json", "24 kinds in Fluent's shaded style."),
    "EmojiKindsFlat": ("split_emoji_kinds_flat.json", "24 kinds in Fluent's flat style."),
    "EmojiKindsContrast": ("split_emoji_kinds_contrast.json", "24 kinds in Fluent's black and white style."),
    "EmojiConcepts": ("split_emoji_concepts.json", "100 concepts, tested on the three other styles together."),
    "EmojiConceptsFluent": ("split_emoji_concepts_fluent.json", "100 concepts, tested on Fluent's shaded style."),
    "EmojiConceptsFlat": ("split_emoji_concepts_flat.json", "100 concepts, tested on Fluent's flat style."),
    "EmojiConceptsContrast": (
        "split_emoji_concepts_contrast.json",
        "100 concepts, tested on Fluent's black and white.",
    ),
}
for _name, (_split, _about) in EMOJI.items():
    _fields = {"__doc__": _about, "__module__": __name__, "split_file": _split}
    globals()[_name] = DATASET_REGISTRY.register()(type(_name, (Emoji,), _fields))
