"""Backends that can be chosen by name, and how one of them is specified and loaded."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from fiftyone_regioncap.core.errors import BackendError, OptionError, WeightsError
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.registry import LazyRegistry, resolve
from fiftyone_regioncap.models.endpoints import without_password
from fiftyone_regioncap.system import assets

T = TypeVar("T")

AUTO = "auto"
"""The name that stands for the best backend that is ready on this machine."""


_SECRET = re.compile(r"(^|_)(key|password|secret|token)$", re.IGNORECASE)
"""Names of options whose values are never stored or shown."""


@dataclass(frozen=True)
class NoOptions(Options):
    """The options of a backend that has none."""


@dataclass(frozen=True)
class ModelCard:
    """Describes a backend before it is loaded.

    The only place where these are stated: shell, forms, docs and consent read it.

    Attributes:
        name: Name of the backend.
        summary: Description of the backend in one line.
        model: ``"module:Class"``; the class has ``from_pretrained(weights, device=,
            options=)``.
        license: License of the default weights.
        commercial: Whether the weights may be used commercially.
        weights: Default weights: a hub repository or the name of an asset; None where
            the backend has none.
        hub_file: A file of the repository that tells that it was downloaded; None for
            weights that are fetched when absent.
        needs: Weights that the user must name, such as ``"a folder"``; None when
            nothing has to be named.
        modules: Modules that must be installed, with the pip requirement of each.
        variables: Environment variables of which one must be set where no weights are
            named.
        options: The options that only this backend has.
        text_encoder: ``"module:Class"`` of the model's text side, for captioners whose
            captions come with region embeddings.
        dense: Whether it captions all parts of an image, for captioners.
        training: ``"module:Class"`` of the model's
            :class:`~fiftyone_regioncap.captioning.trainable.Trainable`, for captioners
            that can be trained.
        training_options: The options that only this model's training has.
        footprint: ``"module:function"`` that returns what the model needs of a GPU, a
            :class:`~fiftyone_regioncap.models.planning.Footprint`, for weights, options
            and numeric type; None where its sizes are not known.
        derivatives: Whether the license allows weights that were made of these.
    """

    name: str
    summary: str
    model: str
    license: str
    commercial: bool
    weights: str | None = None
    hub_file: str | None = None
    needs: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    variables: tuple[str, ...] = ()
    options: type[Options] = NoOptions
    text_encoder: str | None = None
    dense: bool = False
    training: str | None = None
    training_options: type[Options] = NoOptions
    footprint: str | None = None
    derivatives: bool = True

    @property
    def takes_weights(self) -> bool:
        """Returns whether weights, or the address of an endpoint, can be named."""
        return bool(self.weights or self.needs or self.variables)

    def missing(self) -> str | None:
        """Returns what this machine lacks to run the backend with its default weights.

        Returns:
            What to do about it, for people; None when nothing is missing.
        """
        for module, requirement in self.modules.items():
            if importlib.util.find_spec(module) is None:
                return f"the package {module} is missing: pip install {requirement}"
        if self.needs is not None:
            return f"name its weights: {self.needs}"
        if self.variables and not any(map(os.environ.get, self.variables)):
            names = " or ".join(self.variables)
            return f"name an endpoint as its weights (http://...), or set {names}"
        if self.hub_file is None or in_hub_cache(str(self.weights), self.hub_file):
            return None
        return (
            f"{self.weights} is not downloaded; give its name as the weights to do so"
        )

    def wants_consent(self) -> bool:
        """Returns whether the default weights' license is still to be accepted."""
        asked = {item.name for item in assets.ASSETS if item.license.consent}
        return self.weights in asked and not assets.license_accepted(str(self.weights))


@dataclass(frozen=True)
class ModelSpec:
    """Specifies which backend to load and how, as plain values that can be pickled.

    Attributes:
        name: Name of a backend, or ``"auto"``.
        weights: A folder, a file or a hub id; None for the backend's default.
        device: A torch device such as ``"cuda"``; None for the best there is.
        options: Values of the backend's own options by name.
        accept_license: Whether the user accepts the license of the default weights.
    """

    name: str = AUTO
    weights: str | None = None
    device: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    accept_license: bool = False

    def public(self) -> ModelSpec:
        """Returns the specification without keys and passwords, to store or show."""
        options = {
            name: without_password(value) if isinstance(value, str) else value
            for name, value in self.options.items()
            if not _SECRET.search(name)
        }
        weights = None if self.weights is None else without_password(self.weights)
        return replace(self, weights=weights, options=options)


@dataclass(frozen=True)
class ModelRegistry(LazyRegistry[ModelCard], Generic[T]):
    """Registry of the backends of one kind.

    Attributes:
        preferred: Names that ``"auto"`` tries in turn; the last one always runs.
    """

    preferred: tuple[str, ...] = ()

    def choose(self) -> tuple[ModelCard, str]:
        """Returns the backend that ``"auto"`` selects here, and why, for people."""
        return next(self._candidates())

    def check(self, spec: ModelSpec, *, weights: bool = True) -> None:
        """Validates a specification before any work.

        Args:
            spec: Specification of the backend.
            weights: Whether weights have to be named where there are none by default.

        Raises:
            BackendError: When there is no such backend, or no weights where named.
            OptionError: When an option is unknown or has a wrong value.
        """
        if spec.name != AUTO:
            self._prepare(self[spec.name], spec, needed=weights)
        elif spec.weights is not None:
            self._prepare(self._taking_weights()[0], spec)
        elif spec.options:
            self._prepare(self.choose()[0], spec)

    def load(self, spec: ModelSpec) -> tuple[T, str]:
        """Loads a backend.

        Args:
            spec: Specification of the backend. ``"auto"`` passes over one whose weights
                turn out not to be had; with weights named, over those that have none or
                can't load them.

        Returns:
            The backend and, for people, why it was chosen.

        Raises:
            BackendError: When there is none of that name.
            OptionError: When an option is unknown or has a wrong value.
            LicenseError: When a license has to be accepted first.
            WeightsError: When the weights are not to be had.
        """
        if spec.name != AUTO:
            card = self[spec.name]
            return self._make(card, spec), f"{self.kind} {spec.name}: as asked"
        candidates = self._candidates()
        if spec.weights is not None:
            why = f"{spec.weights} was named"
            candidates = iter(
                [
                    (card, f"{self.kind} {card.name}: {why}")
                    for card in self._taking_weights()
                ]
            )
        failed = ""
        for card, reason in candidates:
            try:
                return self._make(card, spec), reason + failed
            except WeightsError as error:
                failed += f"; not {card.name} ({error})"
        raise WeightsError(f"no {self.kind} can run here{failed}")

    def obtain(self, chosen: T | ModelSpec, reasons: list[str]) -> T:
        """Loads a backend that is specified; one that is loaded is taken as it is.

        Args:
            chosen: A specification, or a backend.
            reasons: List that the reason for choosing a backend is added to.
        """
        if not isinstance(chosen, ModelSpec):
            return chosen
        backend, reason = self.load(chosen)
        reasons.append(reason)
        return backend

    def text_encoder(self, spec: ModelSpec) -> Any:
        """Loads the text side of a captioner whose captions have region embeddings.

        Args:
            spec: The captioner's name and the same weights as the captioner's.

        Raises:
            BackendError: When the captioner has none.
            WeightsError: When the weights are not to be had.
        """
        card = self[spec.name]
        if card.text_encoder is None:
            able = [name for name, one in self.available().items() if one.text_encoder]
            raise BackendError(
                f"the {self.kind} {spec.name!r} encodes no texts; "
                f"{', '.join(able)} does"
            )
        weights, _ = self._prepare(card, spec)
        return resolve(card.text_encoder).from_pretrained(weights, device=spec.device)

    def _prepare(
        self, card: ModelCard, spec: ModelSpec, needed: bool = True
    ) -> tuple[str | None, Options]:
        """Returns the weights to load, checked to exist if a path, and the options."""
        options = card.options.from_mapping(spec.options, f"{self.kind} {card.name}")
        weights = spec.weights or card.weights
        if needed and weights is None and card.needs is not None:
            raise BackendError(f"{card.name} needs weights: {card.needs}")
        if spec.weights is not None and not card.takes_weights:
            raise OptionError(
                f"the {self.kind} {card.name} has no weights; leave {spec.weights!r} "
                "out, or name another model"
            )
        if spec.weights is not None and not spec.weights.startswith("http"):
            checked_path(spec.weights)
        return weights, options

    def _taking_weights(self) -> list[ModelCard]:
        """Returns the preferred backends that take weights."""
        return [self[name] for name in self.preferred if self[name].takes_weights]

    def _make(self, card: ModelCard, spec: ModelSpec) -> T:
        weights, options = self._prepare(card, spec)
        if card.weights is not None and spec.accept_license:
            assets.accept_license(card.weights)
        model = resolve(card.model)
        try:
            return model.from_pretrained(weights, device=spec.device, options=options)
        except Exception as error:
            reason = _no_room(error, card.name, spec.device)
            if reason is None:
                raise
        # Outside the handler: the error's traceback holds on to the tensors.
        raise BackendError(reason)

    def _candidates(self) -> Iterator[tuple[ModelCard, str]]:
        passed_over = ""
        for name in self.preferred:
            missing = self[name].missing()
            if missing is None:
                yield self[name], f"{self.kind} {name}: ready here{passed_over}"
            else:
                passed_over += f"; not {name} ({missing})"


def _no_room(error: Exception, name: str, device: str | None) -> str | None:
    """Returns why a model doesn't fit, and what to choose; None for other errors."""
    from fiftyone_regioncap.models import devices

    if not devices.is_out_of_memory(error):
        return None
    return devices.no_room(devices.choose_device(device), f"the weights of {name}")


def in_hub_cache(repository: str, file: str = "model.safetensors") -> bool:
    """Returns whether a file of a hub repository is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file), str)


def checked_path(weights: str) -> str:
    """Makes sure that weights given as a path exist.

    Args:
        weights: A folder, a file, or a hub id (``owner/name``).

    Returns:
        The same text.

    Raises:
        BackendError: When it looks like a path and nothing is there.
    """
    looks_like_path = weights.startswith((".", "/", "~")) or weights.count("/") != 1
    if looks_like_path and not Path(weights).expanduser().exists():
        raise BackendError(
            f"no weights at {weights}; give a folder, a file or a hub id (owner/name)"
        )
    return weights
