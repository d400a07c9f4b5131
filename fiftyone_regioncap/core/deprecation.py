"""Warns of functions and classes that a later version removes."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def deprecated(*, removal: str, replacement: str | None = None) -> Callable[[F], F]:
    """Makes a function, or the construction of a class, warn of its removal.

    Args:
        removal: The version that removes it, such as ``"0.3.0"``.
        replacement: Code to use instead, as it is written; None for nothing.

    Returns:
        A decorator.
    """

    def decorate(target: Any) -> Any:
        text = f"{target.__qualname__} is deprecated and will be removed in {removal}"
        text += f"; use {replacement} instead" if replacement else ""
        is_class = inspect.isclass(target)
        function: Any = vars(target)["__init__"] if is_class else target

        @functools.wraps(function)
        def warning(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(text, FutureWarning, stacklevel=2)
            return function(*args, **kwargs)

        if not is_class:
            return warning
        target.__init__ = warning
        return target

    return decorate
