"""What cannot be a prompt: templates without one place for the class name, and names that CLIP cannot tell apart.

The tokenizer mends broken encodings, resolves HTML's escapes, lower-cases and joins white space; prompts have spaces
for underscores. So "polar_bear" and "Polar  bear" are one prompt, and one of the two could never be predicted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from prompting.layout import clean_name, encode

WORDS = "LNS"  # letters, numbers and symbols, emoji among them: Unicode's categories; not punctuation, space or control
MAX_CHARACTERS = 1000  # no name of more fits; the tokenizer's time grows with the square of a word's length
MAX_TOKENS = 75  # of the text tower's 77, two are its own


class ClassNameError(ValueError):
    """A class name that cannot be a prompt, or two that give the same."""


def check_names(names: Sequence[str], places: Sequence[str] = (), source: str = "", published: bool = False) -> None:
    """Refuse class names that cannot be prompts of their own.

    Args:
        names: of all classes.
        places: where each name stands in the source, for errors; by default its number.
        source: the file or folder that they come from, for errors.
        published: of a published data set, whose names are what they are: two that give the same prompt are said in the
            log, not refused.

    Raises:
        ClassNameError: a name that has no word, is too long or that UTF-8 cannot write; two that give the same prompt.
    """
    where = [f"{source}, {place}".removeprefix(", ") for place in places or [f"class {n}" for n in range(len(names))]]
    first: dict[tuple[int, ...], int] = {}
    alike: list[str] = []
    for index, name in enumerate(names):
        tokens = _tokens(name, where[index])
        other = first.setdefault(tokens, index)
        if other != index:
            alike.append(f"{names[other]!r} ({where[other]}) and {name!r} ({where[index]})")
    if alike and not published:
        raise ClassNameError(
            f"the class names {alike[0]} give the same prompt, so CLIP cannot tell them apart: rename one, or make "
            f"them one class{f' ({len(alike) - 1} more such pairs)' if len(alike) > 1 else ''}"
        )
    if alike:
        more = f" and {len(alike) - 1} more pairs" if len(alike) > 1 else ""
        print(f"Note: class names that give the same prompt, as published: {alike[0]}{more}")


def _tokens(name: str, where: str) -> tuple[int, ...]:
    """The tokens of a name in a prompt."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ClassNameError(
            f"{where}: UTF-8 cannot write the class name {name!r}: rename it (a folder's name in another encoding?)"
        ) from error
    text = clean_name(name)
    if not any(unicodedata.category(character)[0] in WORDS for character in text) or not encode(text[:100]):
        raise ClassNameError(f"{where}: the class name {name!r} has no word in it: give the class a name")
    tokens = encode(f"{text}.") if len(name) <= MAX_CHARACTERS else ()
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise ClassNameError(
            f"{where}: the class name {name[:50]!r} ... is too long: CLIP's text tower takes {MAX_TOKENS} tokens"
        )
    return tuple(tokens)


def check_template(template: str, key: str = "the prompt template") -> str:
    """The template itself, once it has one place for the class name, nothing else in braces, and is text.

    Args:
        template: a prompt with "{}".
        key: what holds it, for errors.

    Raises:
        ValueError: it has not.
    """
    if template.count("{}") != 1 or set(template.replace("{}", "")) & {"{", "}"}:
        raise ValueError(f"{key} {template!r} needs exactly one {{}} for the class name, and no other brace")
    if not template.isprintable():
        raise ValueError(f"{key} {template!r} holds a control character, or half of one: write it as text")
    return template
