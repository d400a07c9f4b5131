"""Registries that import entries when they are used; other packages can add some."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from fiftyone_regioncap.core.errors import BackendError

T = TypeVar("T")

logger = logging.getLogger(__name__)


def resolve(target: str) -> Any:
    """Imports what ``"module:attribute"`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class LazyRegistry(Mapping[str, T], Generic[T]):
    """Entries by name, each imported when it is first used.

    Attributes:
        kind: Kind of entries, for messages, such as ``"captioner"``.
        entries: ``"module:attribute"`` by name, in the order that people see.
        group: Entry-point group through which other packages add entries. A name of
            this package is never replaced.
    """

    kind: str
    entries: Mapping[str, str]
    group: str

    @cached_property
    def _targets(self) -> dict[str, str]:
        """Returns the targets of all entries, those of other packages included."""
        found = dict(self.entries)
        for point in entry_points(group=self.group):
            found.setdefault(point.name, point.value)
        return found

    def __getitem__(self, name: str) -> T:
        """Imports an entry.

        Raises:
            BackendError: When there is none of that name, or its package can't be
                imported.
        """
        if name not in self._targets:
            raise BackendError(
                f"there is no {self.kind} {name!r}; choose one of {', '.join(self)}"
            )
        try:
            return resolve(self._targets[name])
        except (ImportError, AttributeError) as error:
            raise BackendError(
                f"the {self.kind} {name!r} cannot be imported: {error}"
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def available(self) -> dict[str, T]:
        """Returns the entries that can be imported; others are logged and left out."""
        found = {}
        for name in self:
            try:
                found[name] = self[name]
            except BackendError as error:
                logger.warning("%s", error)
        return found
