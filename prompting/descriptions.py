"""Sentences about classes, as a language model writes them: a JSON file {class name: [sentences]}.

Zero-shot CLIP, KgCoOp, PromptSRC, CoPrompt and HiCroPL read it. `python -m datasets descriptions` checks such a file
and prints what to ask a language model for.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prompting.tokens import MAX_TOKENS, clean_name, encode

SENTENCES_ASKED_FOR = 10  # per class


def read_descriptions(path: str, key: str = "", cure: str = "") -> dict[str, list[str]]:
    """The file's sentences by class name, with spaces for underscores.

    Args:
        path: of the file.
        key: of the configuration that names the file, for errors; "": none does.
        cure: what else can be done, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such table.
    """
    named, file, cure = key and f"{key}: ", Path(path), cure and f", {cure}"
    if not file.is_file():
        raise FileNotFoundError(f"{named}no file {path}" + ("; set it to '' to use templates instead" if key else ""))
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{named}{path} is not valid JSON ({error}): mend it{cure}") from error
    should = f"{named}{path} should hold {{class name: [sentences]}}"
    if not isinstance(table, dict):
        raise ValueError(f"{should}: mend it{cure}")
    for position, (name, texts) in enumerate(table.items(), start=1):
        if not isinstance(texts, list):
            raise ValueError(f"{should}, but class {position}, {name!r}, has no list of sentences: mend it{cure}")
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise ValueError(
                    f"{should}, but class {position}, {name!r}: sentence {number} is {text!r}: mend it{cure}"
                )
    return {clean_name(name): sentences for name, sentences in table.items()}


def sentences_by_class(path: str, classnames: Sequence[str], key: str) -> list[list[str]]:
    """The sentences about each class; underscores in names are spaces, and every class must be in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such table, or a class has no sentence or an empty one; named.
    """
    cure = f"or set {key} '' to use templates"
    by_name = read_descriptions(path, key, cure)
    missing = [name for name in classnames if not by_name.get(clean_name(name))]
    if missing:
        raise ValueError(
            f"{key}: {path} has no sentence for {len(missing)} classes, the first is {missing[0]!r}: add them, {cure}"
        )
    by_class = [by_name[clean_name(name)] for name in classnames]
    for name, sentences in zip(classnames, by_class, strict=True):
        if not all(text.strip() for text in sentences):
            raise ValueError(f"{key}: {path} has an empty sentence for class {name!r}: take it out, {cure}")
    return by_class


def problems(by_name: Mapping[str, Sequence[str]], classnames: Sequence[str]) -> Iterator[str]:
    """What is wrong with a file's sentences for these classes, a line each: missing, unknown, empty, too long."""
    names = [clean_name(name) for name in classnames]
    for name in names:
        if not by_name.get(name):
            yield f"{name!r} has no sentence"
    for name, sentences in by_name.items():
        if name not in names:
            near = difflib.get_close_matches(name.lower(), [other.lower() for other in names], n=1)
            meant = next((other for other in names if near and other.lower() == near[0]), "")
            yield f"{name!r} is no class" + (f": is {meant!r} meant?" if meant else "")
        for number, text in enumerate(sentences, start=1):
            if not text.strip():
                yield f"{name!r}: sentence {number} is empty"
            elif (tokens := len(encode(text))) > MAX_TOKENS:
                yield (
                    f"{name!r}: sentence {number} has {tokens + 2} tokens, start and end counted; CLIP takes "
                    f"{MAX_TOKENS + 2}: {text[:40]!r}..."
                )


def request(classnames: Sequence[str], about: str = "") -> str:
    """What to ask a language model for; `about` says what the images are of."""
    names = list(dict.fromkeys(clean_name(name) for name in classnames))  # two of ImageNet's share theirs
    example = {name: ["...", "..."] for name in names[:2]}
    return "\n".join(
        [
            "An image classifier compares photos with sentences about each class. Write sentences that tell the "
            "classes below apart by what can be seen.",
            *([f"The images: {about}"] if about else []),
            "",
            f"- {SENTENCES_ASKED_FOR} sentences for each class, each different and complete in itself.",
            "- Name the class in every sentence, and describe shape, colour, parts, texture or surroundings.",
            "- At most 30 words a sentence: longer ones do not fit into the model.",
            "- No other class's name, no numbering, nothing that a photo cannot show.",
            "",
            f"Answer with JSON only: an object with these {len(names)} class names as keys, spelled exactly so, and a "
            "list of sentences for each, as in",
            json.dumps(example, ensure_ascii=False, indent=1),
            "",
            "Classes:",
            *names,
        ]
    )
