"""What can be chosen: backends by name, with what each needs and may be used for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from fiftyone_regioncap.core.errors import BackendError, WeightsError
from fiftyone_regioncap.system import assets

T = TypeVar("T")


@dataclass(frozen=True)
class LoadOptions:
    """How to load a backend.

    Attributes:
        weights: a folder, a file or a hub id; None for the backend's own default.
        device: a torch device such as ``"cuda"``; None for the best there is.
        options: what only this backend knows, such as ``{"image_size": 512}``.
        accept_license: whether the user accepts the license of the default weights,
            where it asks for consent.
    """

    weights: str | None = None
    device: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    accept_license: bool = False


@dataclass(frozen=True)
class Backend(Generic[T]):
    """One choice in a registry.

    Attributes:
        name: as users write it.
        summary: one line on what it is.
        weights: the published weights it loads by default; None where it has none or
            the user always names them.
        license: of those weights, for people.
        commercial: whether the weights may be used commercially.
        load: makes it; imports what it needs only then.
        missing: says what this machine lacks to run it with its default weights, and
            what to do; None when nothing is.
    """

    name: str
    summary: str
    weights: str | None
    license: str
    commercial: bool
    load: Callable[[LoadOptions], T]
    missing: Callable[[], str | None]

    def make(self, options: LoadOptions) -> T:
        """Loads it, noting first that the user accepts the license if they do.

        Raises:
            LicenseError: when the default weights' license asks for consent that was
                never given.
            WeightsError: when the weights are not to be had.
        """
        if self.weights is not None and options.accept_license:
            assets.accept_license(self.weights)
        return self.load(options)

    def wants_consent(self) -> bool:
        """Whether the user has yet to accept the license of the default weights."""
        asked = {item.name for item in assets.ASSETS if item.license.consent}
        return self.weights in asked and not assets.license_accepted(str(self.weights))


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Backends of one kind.

    Attributes:
        kind: what they are, for messages.
        backends: by name, in the order in which people should see them.
        preferred: names that ``auto`` tries in turn; the last one always runs.
    """

    kind: str
    backends: Mapping[str, Backend[T]]
    preferred: tuple[str, ...]

    def __getitem__(self, name: str) -> Backend[T]:
        """The backend of that name.

        Raises:
            BackendError: when there is none.
        """
        if name not in self.backends:
            raise BackendError(
                f"there is no {self.kind} {name!r}; choose one of "
                f"{', '.join(self.backends)} or auto"
            )
        return self.backends[name]

    def choose(self) -> tuple[Backend[T], str]:
        """The backend that ``auto`` stands for here, and the reason for people."""
        return next(self._candidates())

    def load(self, name: str, options: LoadOptions) -> tuple[T, str]:
        """Makes a backend.

        Args:
            name: of a backend, or ``"auto"`` for the best that runs here; one whose
                weights turn out not to be had is passed over.
            options: how to load it.

        Returns:
            the backend and, for people, why it was chosen.

        Raises:
            BackendError: when there is none of that name.
            WeightsError: when its weights are not to be had.
        """
        if name != "auto":
            return self[name].make(options), f"{self.kind} {name}: as asked"
        failed = ""
        for backend, reason in self._candidates():
            try:
                return backend.make(options), reason + failed
            except WeightsError as error:
                failed += f"; not {backend.name} ({error})"
        raise WeightsError(f"no {self.kind} can run here{failed}")

    def _candidates(self) -> Iterator[tuple[Backend[T], str]]:
        passed_over = ""
        for name in self.preferred:
            missing = self[name].missing()
            if missing is None:
                yield self[name], f"{self.kind} {name}: ready here{passed_over}"
            else:
                passed_over += f"; not {name} ({missing})"


def in_hub_cache(repository: str, file: str = "model.safetensors") -> bool:
    """Whether a file of a hub repository is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file), str)


def best_device() -> str:
    """``"cuda"`` where there is a GPU, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def checked_path(weights: str) -> str:
    """Makes sure that weights given as a path are there.

    Args:
        weights: a folder, a file, or a hub id (``owner/name``).

    Returns:
        the same text.

    Raises:
        BackendError: when it looks like a path and nothing is there.
    """
    looks_like_path = weights.startswith((".", "/", "~")) or weights.count("/") != 1
    if looks_like_path and not Path(weights).expanduser().exists():
        raise BackendError(
            f"no weights at {weights}; give a folder, a file or a hub id (owner/name)"
        )
    return weights
