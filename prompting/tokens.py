"""From class names to token positions: which token of each class's text is a word and which is learned.

A layout holds no weights. It is rebuilt whenever the class list changes, which is why a prompt learner trained on base
classes can be evaluated on any others. At the end: what cannot be a prompt.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from clip.clip import _tokenizer
from torch import Tensor

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")
_SOT = _tokenizer.encoder["<|startoftext|>"]
_EOT = _tokenizer.encoder["<|endoftext|>"]


class PromptTooLongError(ValueError):
    """A class's text, with its context, does not fit into the text tower's context length."""


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: encoders keep what they derive from it
class PromptLayout:
    """Tokens of every class and the positions that context vectors take."""

    classnames: tuple[str, ...]
    tokens: Tensor  # (n_cls, longest) token ids, [SOS] first, zero after [EOT]; a placeholder at learned positions
    context: Tensor  # (n_cls, longest) index of the context vector at a position, -1 where the word stays
    lengths: Tensor  # (n_cls,) number of tokens from [SOS] to [EOT], both counted

    @property
    def n_classes(self) -> int:
        return len(self.classnames)

    @cached_property
    def n_rows(self) -> int:
        """Number of tokens of all classes."""
        return int(self.lengths.sum())

    def widened(self, n: int) -> PromptLayout:
        """The same texts with n more positions behind [SOS], for tokens that are inserted at a later layer."""
        tokens, context = (
            torch.cat([part[:, :1], part.new_full((len(part), n), fill), part[:, 1:]], dim=1)
            for part, fill in ((self.tokens, 0), (self.context, -1))
        )
        return PromptLayout(self.classnames, tokens, context, self.lengths + n)

    def shared_length(self) -> int:
        """Number of leading positions that are the same in every class; [EOT] is never one of them."""
        same = (self.tokens == self.tokens[:1]).all(0) & (self.context == self.context[:1]).all(0)
        limit = int(self.lengths.min()) - 1
        differs = (~same[:limit]).nonzero()
        return int(differs[0]) if len(differs) else limit


def clean_name(name: str) -> str:
    """A class name as it stands in a prompt: underscores are spaces."""
    return name.replace("_", " ")


def encode(text: str) -> list[int]:
    """Token ids of a text without [SOS] and [EOT]."""
    return _tokenizer.encode(text)


def layout_from_texts(texts: Sequence[str], classnames: Sequence[str], context_length: int) -> PromptLayout:
    """Layout of ready sentences with nothing learned, for example "a photo of a dog."; Raises as below."""
    rows = [[(token, -1) for token in encode(text)] for text in texts]
    return _stack(rows, classnames, context_length, "shorten the template or sentence, or the class name")


def layout_with_context(
    classnames: Sequence[str],
    context_length: int,
    n_ctx: int,
    words: str = "",
    position: str = "end",
    class_specific: bool = False,
    template: str = "{}.",
) -> PromptLayout:
    """Layout "[context] {class}." whose first ``n_ctx`` context tokens are learned.

    Args:
        context_length: positions of the text tower (77).
        words: the context in words; tokens beyond the first ``n_ctx`` stay words (MaPLe: two learned, "of a" kept).
            Empty: ``n_ctx`` placeholders.
        position: where the class name stands: "end", "middle" (between the halves of the context) or "front".
        class_specific: every class has its own context vectors (CoOp's CSC): class c uses vectors
            c * n_ctx ... c * n_ctx + n_ctx - 1.
        template: what follows the context, with one "{}" for the class name ("{}, a type of pet.").

    Raises:
        PromptTooLongError: naming the class whose text has too many tokens.
        ValueError: for an unknown position, or words shorter than ``n_ctx`` tokens.
    """
    if position not in CLASS_TOKEN_POSITIONS:
        raise ValueError(f"CLASS_TOKEN_POSITION {position!r}: choose one of {', '.join(CLASS_TOKEN_POSITIONS)}")
    words = clean_name(words) if words else " ".join(["X"] * n_ctx)
    n_words = len(encode(words))
    if n_words < n_ctx:
        raise ValueError(f"CTX_INIT {words!r} has {n_words} tokens, fewer than the {n_ctx} to learn")
    cut = {"end": n_words, "middle": n_ctx // 2, "front": 0}[position]
    rows = []
    for index, name in enumerate(classnames):
        first = index * n_ctx if class_specific else 0
        # Encoded whole: the tokenizer may join a name's last sign with the full stop, as in "crane (bird)."
        tokens = encode(f"{words} {template.format(clean_name(name))}")
        row = [(token, first + j if j < n_ctx else -1) for j, token in enumerate(tokens)]
        name_end = n_words + len(encode(template.partition("{}")[0] + clean_name(name)))
        rows.append(row[:cut] + row[n_words:name_end] + row[cut:n_words] + row[name_end:])
    cure = "use fewer context tokens (N_CTX), a shorter CTX_INIT or a shorter class name"
    return _stack(rows, classnames, context_length, cure)


def _stack(
    rows: list[list[tuple[int, int]]], classnames: Sequence[str], context_length: int, cure: str
) -> PromptLayout:
    """Frame rows of (token, context index) with [SOS] and [EOT] and pad them to the longest; ``cure``: for too long."""
    if not rows:
        raise ValueError("no class names: the class list of the data set is empty")
    rows = [[(_SOT, -1), *row, (_EOT, -1)] for row in rows]
    for row, name in zip(rows, classnames, strict=True):
        if len(row) > context_length:
            raise PromptTooLongError(
                f"the prompt of class {name!r} has {len(row)} tokens, the text tower takes {context_length}: {cure}"
            )
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.tensor([row + [(0, -1)] * (int(lengths.max()) - len(row)) for row in rows])  # (n_cls, longest, 2)
    return PromptLayout(tuple(classnames), padded[..., 0].contiguous(), padded[..., 1].contiguous(), lengths)


# What cannot be a prompt: templates without one place for the class name, and names that CLIP cannot tell apart. The
# tokenizer mends broken encodings, resolves HTML's escapes, lower-cases and joins white space; prompts have spaces for
# underscores. So "polar_bear" and "Polar  bear" are one prompt, and one of the two could never be predicted.

WORDS = "LNS"  # letters, numbers and symbols, emoji among them: Unicode's categories; not punctuation, space or control
MAX_CHARACTERS = 1000  # no name of more fits; the tokenizer's time grows with the square of a word's length
MAX_TOKENS = 75  # of the text tower's 77, two are [SOS] and [EOT]


class ClassNameError(ValueError):
    """A class name that cannot be a prompt, or two that give the same."""


def check_names(names: Sequence[str], places: Sequence[str] = (), source: str = "", published: bool = False) -> None:
    """Refuse class names that cannot be prompts of their own.

    Args:
        places: where each name stands in ``source``, a file or folder, for errors; by default its number.
        published: of a published data set, whose names are what they are: two that give the same prompt are said in the
            log, not refused.

    Raises:
        ClassNameError: a name that has no word, is too long or that UTF-8 cannot write; two that give the same prompt.
    """
    first: dict[tuple[int, ...], str] = {}  # tokens -> the first name that has them, and its place
    alike: list[str] = []
    for name, place in zip(names, places or [f"class {n}" for n in range(len(names))], strict=True):
        where, text = f"{source}, {place}".removeprefix(", "), clean_name(name)
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ClassNameError(
                f"{where}: UTF-8 cannot write the class name {name!r}: rename it (a folder's name in another encoding?)"
            ) from error
        if not any(unicodedata.category(character)[0] in WORDS for character in text) or not encode(text[:100]):
            raise ClassNameError(f"{where}: the class name {name!r} has no word in it: give the class a name")
        tokens = tuple(encode(f"{text}.")) if len(name) <= MAX_CHARACTERS else ()
        if not 0 < len(tokens) <= MAX_TOKENS:
            raise ClassNameError(
                f"{where}: the class name {name[:50]!r} ... is too long: CLIP's text tower takes {MAX_TOKENS} tokens"
            )
        said = f"{name!r} ({where})"
        if tokens in first:
            alike.append(f"{first[tokens]} and {said}")
        else:
            first[tokens] = said
    more = f"{len(alike) - 1} more" if len(alike) > 1 else ""
    if alike and not published:
        raise ClassNameError(
            f"the class names {alike[0]} give the same prompt, so CLIP cannot tell them apart: rename one, or make "
            f"them one class{more and f' ({more} such pairs)'}"
        )
    if alike:
        print(f"Note: class names that give the same prompt, as published: {alike[0]}{more and f' and {more} pairs'}")


def check_template(template: str, key: str = "the prompt template") -> str:
    """The template itself; a ValueError names its ``key`` unless it is text with one "{}" and no other brace."""
    if template.count("{}") != 1 or set(template.replace("{}", "")) & {"{", "}"}:
        raise ValueError(f"{key} {template!r} needs exactly one {{}} for the class name, and no other brace")
    if not template.isprintable():
        raise ValueError(f"{key} {template!r} holds a control character, or half of one: write it as text")
    return template
