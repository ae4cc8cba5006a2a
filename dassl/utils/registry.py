"""Names to classes and functions: how trainers, data sets, evaluators and models are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


class UnknownNameError(KeyError, ValueError):
    """A name that nothing is registered under."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry:
    """A table of named classes or functions.

    Example:
        >>> SHAPE_REGISTRY = Registry("SHAPE")
        >>> @SHAPE_REGISTRY.register()
        ... class Circle: ...
        >>> SHAPE_REGISTRY.get("Circle")
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Enter `obj` under its `__name__`; without `obj`, return a decorator that does.

        Args:
            obj: class or function.
            force: replace an earlier entry of that name.

        Raises:
            KeyError: if the name is taken and `force` is not set.
        """
        if obj is not None:
            self._do_register(obj.__name__, obj, force)
            return None

        def decorator(decorated: T) -> T:
            self._do_register(decorated.__name__, decorated, force)
            return decorated

        return decorator

    def _do_register(self, name: str, obj: Any, force: bool = False) -> None:
        if name in self._obj_map and not force:
            raise KeyError(f'an object named "{name}" is already registered in the {self._name} registry')
        self._obj_map[name] = obj

    def get(self, name: str) -> Any:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: naming the choices and the nearest of them.
        """
        if name not in self._obj_map:
            raise UnknownNameError(_unknown(name, self.registered_names(), f"the {self._name} registry"))
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order of their registration."""
        return list(self._obj_map)

    def __contains__(self, name: object) -> bool:
        return name in self._obj_map


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the string of `b` most like `a`, or None if `b` is empty."""
    return max(b, key=lambda candidate: SequenceMatcher(None, str(a), candidate).ratio(), default=None)


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Check that `requested` is one of `available`.

    Raises:
        UnknownNameError: naming the choices and the nearest of them.
    """
    available = list(available)
    if requested not in available:
        raise UnknownNameError(_unknown(requested, available, "the available ones"))


def _unknown(name: str, choices: list[str], where: str) -> str:
    message = f"[{name}] is not in {where}: {choices}"
    nearest = get_most_similar_str_to_a_from_b(name, choices)
    return f"{message} (do you mean [{nearest}]?)" if nearest else message
