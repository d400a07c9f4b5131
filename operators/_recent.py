"""Keeps values of panels between events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Recent(Generic[_T]):
    """The values used last; safe to share between requests.

    The App makes a panel object an event, so what outlives events is kept in these. The
    panel state of FiftyOne belongs to the App's workspace: the App drops its filters
    and lassos whenever that changes.
    """

    def __init__(self, size: int) -> None:
        """Keeps that many."""
        self._size = size
        self._values: OrderedDict[Hashable, _T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> _T | None:
        """Returns the value of a key, which now is the one used last."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: _T) -> _T:
        """Keeps a value, and gives it back."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def values(self) -> list[_T]:
        """Returns all values."""
        with self._lock:
            return list(self._values.values())

    def clear(self) -> None:
        """Forgets them."""
        with self._lock:
            self._values.clear()


class Sessions(Generic[_T]):
    """State of the panels of one kind, each over one dataset.

    A panel's state begins anew after the App's server restarted.
    """

    def __init__(self, make: Callable[[], _T], size: int = 64) -> None:
        """Makes them when they are asked for.

        Args:
            make: Returns the state that a panel begins with.
            size: Number of panels whose state is kept.
        """
        self._make = make
        self._values: Recent[_T] = Recent(size)

    def of(self, ctx: Any) -> _T:
        """Returns the state of the panel that an event is of.

        Not by the dataset itself: FiftyOne reads all of it once it is asked for.
        """
        found = self._values.get(self._key(ctx))
        return self.renew(ctx) if found is None else found

    def renew(self, ctx: Any) -> _T:
        """Begins anew."""
        return self._values.put(self._key(ctx), self._make())

    @staticmethod
    def _key(ctx: Any) -> tuple[str, str | None]:
        return ctx.panel.id, ctx.dataset_id or ctx.dataset_name
