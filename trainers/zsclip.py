"""Zero-shot CLIP: hand-written prompts, nothing trained.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompting import Precision, PromptedCLIP, PromptLayout, PromptLearner, Prompts, TowerSizes, layout_from_texts
from prompting.descriptions import sentences_by_class
from prompting.model import ensemble, template_features
from prompting.tokens import check_template, clean_name
from trainers.base import PromptTrainer, add_trainer_config
from trainers.templates import IMAGENET_TEMPLATES_SELECT, template_of

add_trainer_config(
    "ZEROSHOTCLIP",
    PREC="fp32",  # fp32, fp16, bf16, amp
    TEMPLATE="",  # prompt with one {} for the class name; "": the data set's own
    SENTENCES="",  # JSON file {class name: [sentences]} by a language model, in place of templates (CuPL)
)


class FixedPrompt(PromptLearner):
    """A template with the class name filled in; no parameters."""

    text_is_frozen = True

    def __init__(self, clip_model: nn.Module, template: str) -> None:
        super().__init__(TowerSizes.of(clip_model), n_ctx=0)
        self.template = template

    def layout(self, classnames: Sequence[str]) -> PromptLayout:
        texts = [self.template.format(clean_name(name)) for name in classnames]
        return layout_from_texts(texts, classnames, self.sizes.context_length)

    def forward(self) -> Prompts:
        return Prompts()


class DescribedClasses(FixedPrompt):
    """The sentences about each class in a JSON file, in place of the template."""

    def __init__(self, clip_model: nn.Module, template: str, sentences: str) -> None:
        super().__init__(clip_model, template)
        self.sentences = sentences

    def class_sentences(self, classnames: Sequence[str]) -> list[list[str]]:
        return sentences_by_class(self.sentences, classnames, "TRAINER.ZEROSHOTCLIP.SENTENCES")


class EnsembleCLIP(PromptedCLIP):
    """Zero-shot classifier over the mean text feature of several templates, or of each class's sentences.

    Sentences: Pratt et al., "What does a platypus look like?", ICCV 2023, https://arxiv.org/abs/2209.03320
    """

    def __init__(
        self,
        clip_model: nn.Module,
        templates: Sequence[str],
        classnames: Sequence[str],
        precision: Precision,
        sentences: str = "",
    ) -> None:
        self.templates = tuple(templates)
        learner = FixedPrompt(clip_model, templates[0])
        if sentences:
            learner = DescribedClasses(clip_model, templates[0], sentences)
        super().__init__(clip_model, learner, classnames, precision)

    def text_features(self, prompts: Prompts | None = None) -> Tensor:
        """Mean of the normalised features of templates or sentences, normalised again, (n_cls, embed_dim)."""
        if isinstance(self.prompt_learner, DescribedClasses):
            return self.class_features()
        return ensemble(template_features(self.text_encoder, self.classnames, self.templates, self.precision))


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Zero-shot CLIP with the data set's prompt template; "training" only evaluates."""

    node = "ZEROSHOTCLIP"
    needs_training = False

    def templates(self) -> list[str]:
        """The templates that are averaged; here one."""
        own = self.settings.TEMPLATE
        return [check_template(own, "TRAINER.ZEROSHOTCLIP.TEMPLATE") if own else template_of(self.cfg, self.dm.dataset)]

    def build_model(self) -> None:
        """Load CLIP; there is no learner to optimise and none is registered."""
        clip_model = self.load_checked_backbone().to(self.device)
        templates, sentences = self.templates(), self.settings.SENTENCES
        print(f"Sentences: {sentences}" if sentences else f"Prompt templates: {templates}")
        model = EnsembleCLIP(clip_model, templates, self.dm.dataset.classnames, self.precision, sentences)
        self.model = model.eval()

    def train(self) -> None:
        """Nothing to train: evaluate, so that the same command line serves every trainer."""
        print(f"{type(self).__name__} has nothing to train")
        if not self.cfg.TEST.NO_TEST:
            getattr(self, "final_evaluation", self.test)()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Nothing to load."""


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Zero-shot CLIP with the ensemble of OpenAI's seven selected ImageNet templates and the data set's own."""

    def templates(self) -> list[str]:
        own = super().templates()
        others = [t for t in IMAGENET_TEMPLATES_SELECT if t not in own]
        return others + own if self.cfg.DATASET.NAME != "ImageNet" else list(IMAGENET_TEMPLATES_SELECT)
