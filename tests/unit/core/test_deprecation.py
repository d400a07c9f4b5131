from __future__ import annotations

import inspect
import warnings

import pytest

from fiftyone_regioncap.core.deprecation import deprecated


@deprecated(removal="0.3.0", replacement="double()")
def twice(value: int, *, plus: int = 0) -> int:
    """Doubles a value."""
    return 2 * value + plus


@deprecated(removal="0.4.0")
class Box:
    """A box."""

    def __init__(self, side: int) -> None:
        self.side = side


def test_function_warns_where_it_is_called_and_works_as_before() -> None:
    expected = (
        "^twice is deprecated and will be removed in 0.3.0; use double\\(\\) instead$"
    )
    with pytest.warns(FutureWarning, match=expected) as caught:
        assert twice(4, plus=1) == 9
    assert caught[0].filename == __file__
    assert list(inspect.signature(twice).parameters) == ["value", "plus"]
    assert twice.__doc__ == "Doubles a value."


def test_class_stays_a_class_and_warns_when_it_is_made() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Crate(Box):
            def __init__(self) -> None:
                self.side = 1

        assert isinstance(Crate(), Box)
    with pytest.warns(FutureWarning, match="^Box is .* removed in 0.4.0$") as caught:
        assert Box(3).side == 3
    assert caught[0].filename == __file__
