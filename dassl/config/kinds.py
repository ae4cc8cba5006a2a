"""What a configuration key may hold: each kind says whether a value fits, and in words what it wants."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_CHARACTERS = 4096  # of a text; the longest path that a system takes
LEAST_INT, MOST_INT = -(2**63), 2**63 - 1  # what PyTorch and NumPy count with
NOT_TEXT = ("Cc", "Cs")  # Unicode's control characters, and halves of characters, which no file can hold


@dataclass(frozen=True)
class Number:
    """A finite number in a range; with `whole` an int. `above` and `below` are ends that do not belong to it."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False

    def fits(self, value: Any) -> bool:
        """Whether `value` is one."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not (LEAST_INT <= value <= MOST_INT if isinstance(value, int) else math.isfinite(value)):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        ends = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        given = " and ".join(f"{word} {end}" for word, end in ends if end is not None)
        kind = "a whole number" if self.whole else "a number"
        return f"{kind}, {given}" if given else f"{kind} of 64 bits" if self.whole else "a finite number"


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def fits(self, value: Any) -> bool:
        """Whether `value` is one."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Text:
    """A text that a file and a terminal can hold; `empty`: whether it may have no characters."""

    empty: bool = True

    def fits(self, value: Any) -> bool:
        """Whether `value` is one."""
        if not isinstance(value, str) or len(value) > MOST_CHARACTERS or not (value or self.empty):
            return False
        return not any(unicodedata.category(character) in NOT_TEXT for character in value)

    def __str__(self) -> str:
        least = 0 if self.empty else 1
        return f"a text of {least} to {MOST_CHARACTERS} characters, none of them a control character"


@dataclass(frozen=True)
class Choice:
    """One of some names: a tuple of them, or what gives it, for names that are registered later."""

    names: Sequence[str] | Callable[[], Sequence[str]]

    def fits(self, value: Any) -> bool:
        """Whether `value` is one."""
        return isinstance(value, str) and value in self.choices()

    def choices(self) -> Sequence[str]:
        """The names."""
        return self.names() if callable(self.names) else self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices())}"


@dataclass(frozen=True)
class Several:
    """A list or tuple of values of one kind; `length`: how many, `least`: how many at least, `words`: what they are."""

    of: Any
    length: int | None = None
    least: int = 0
    words: str = "a list"

    def fits(self, value: Any) -> bool:
        """Whether `value` is one."""
        if not isinstance(value, list | tuple) or len(value) < self.least:
            return False
        return self.length in (None, len(value)) and all(self.of.fits(each) for each in value)

    def __str__(self) -> str:
        return f"{self.words}, each of them {self.of}"


@dataclass(frozen=True)
class Anything:
    """Whatever yacs reads: where a default says nothing about the values."""

    def fits(self, value: Any) -> bool:
        """True."""
        return True

    def __str__(self) -> str:
        return "any value"


def kind_of(default: Any) -> Any:
    """The kind that a default value is of, without a range."""
    if isinstance(default, bool):
        return Flag()
    if isinstance(default, int):
        return Number(whole=True)
    if isinstance(default, float) and math.isfinite(default):
        return Number()
    if isinstance(default, str):
        return Text()
    if isinstance(default, list | tuple):
        kinds = {kind_of(each) for each in default}
        kinds = {Number()} if kinds == {Number(), Number(whole=True)} else kinds
        return Several(kinds.pop() if len(kinds) == 1 else Anything())
    return Anything()


def kind_in(default: Any, allowed: tuple[Any, ...]) -> Any:
    """The kind of a default with what a trainer allows: (least, most) of a number, or the names to choose from."""
    if isinstance(default, list | tuple):
        return Several(kind_in(default[0] if default else allowed[0], allowed))
    if isinstance(allowed[0], str):
        return Choice(allowed)
    return Number(*allowed, whole=isinstance(default, int))
