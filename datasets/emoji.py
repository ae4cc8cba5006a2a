"""Emoji that come with the code, in four drawing styles: domain generalisation and transfer without a download.

Two tasks. Kinds: is this a mammal, a book, a tool ...? Train on some drawings of each, test on others; the names of the
drawings are dealt out the same way in every style. Concepts: is this a koala, a hammer ...? One training drawing each,
in Noto's style; the test drawings are of the other styles. Noto is the source style; Fluent, its flat and its
high-contrast version are the styles to generalise to, named as the variants of ImageNet are.
"""

from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset


class Emoji(FewShotDataset):
    """What the emoji data sets share; their data root is `assets`."""

    dataset_dir = "emoji"
    image_folder: ClassVar[str] = "images"
    split_help: ClassVar[str] = (
        "It comes with the code (--root assets); to make it again see: python -m tools.bundled_data --help"
    )
    template = "a photo of a {}."


@DATASET_REGISTRY.register()
class EmojiKinds(Emoji):
    """24 kinds in Noto's style."""

    split_file: ClassVar[str] = "split_emoji_kinds_noto.json"


@DATASET_REGISTRY.register()
class EmojiKindsFluent(Emoji):
    """24 kinds in Fluent's shaded style."""

    split_file: ClassVar[str] = "split_emoji_kinds_fluent.json"


@DATASET_REGISTRY.register()
class EmojiKindsFlat(Emoji):
    """24 kinds in Fluent's flat style."""

    split_file: ClassVar[str] = "split_emoji_kinds_flat.json"


@DATASET_REGISTRY.register()
class EmojiKindsContrast(Emoji):
    """24 kinds in Fluent's black and white style."""

    split_file: ClassVar[str] = "split_emoji_kinds_contrast.json"


@DATASET_REGISTRY.register()
class EmojiConcepts(Emoji):
    """100 concepts, one training drawing each in Noto's style; tested on the three other styles together."""

    split_file: ClassVar[str] = "split_emoji_concepts.json"


@DATASET_REGISTRY.register()
class EmojiConceptsFluent(Emoji):
    """As EmojiConcepts, tested on Fluent's shaded style alone."""

    split_file: ClassVar[str] = "split_emoji_concepts_fluent.json"


@DATASET_REGISTRY.register()
class EmojiConceptsFlat(Emoji):
    """As EmojiConcepts, tested on Fluent's flat style alone."""

    split_file: ClassVar[str] = "split_emoji_concepts_flat.json"


@DATASET_REGISTRY.register()
class EmojiConceptsContrast(Emoji):
    """As EmojiConcepts, tested on Fluent's black and white style alone."""

    split_file: ClassVar[str] = "split_emoji_concepts_contrast.json"
