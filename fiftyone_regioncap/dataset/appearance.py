"""Lays out a dataset in the App: bookkeeping out of the way, objects told apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import fiftyone as fo

from fiftyone_regioncap.dataset.fields import frames_field
from fiftyone_regioncap.dataset.locks import locked
from fiftyone_regioncap.dataset.schema import (
    error_field,
    objects_field,
    origin_field,
    status_field,
)
from fiftyone_regioncap.dataset.store import refresh_schema, undisturbed

GROUP = "job bookkeeping"
"""Group of the sidebar with the fields that only jobs write."""

_BOOKKEEPING = (status_field, error_field, origin_field, objects_field)


def tidy(dataset: fo.Dataset, *outputs: str) -> None:
    """Makes the fields that jobs keep for themselves read-only, in a closed group.

    The objects of a dataset without colors of its own get a color each, and where the
    fields that the App shows are listed, the outputs join them. What a person chose of
    the sidebar and the colors stays.

    Args:
        dataset: The dataset.
        *outputs: Fields that jobs write, with or without ``frames.`` in front.
    """
    # It saves the list of fields as a whole, as declaring some does.
    with locked(f"schema of {dataset._doc.id}"):
        refresh_schema(dataset)
        _tidy(dataset, outputs)


def _tidy(dataset: fo.Dataset, outputs: Sequence[str]) -> None:
    names = [name(output) for output in outputs for name in _BOOKKEEPING]
    kept = [name for name in names if dataset.has_sample_field(name)]
    for name in kept:
        field = dataset.get_field(name)
        if not field.read_only:
            field.read_only = True
            # Another process may have been first.
            undisturbed(partial(field.save, _enforce_read_only=False))
    config = dataset.app_config
    groups = config.sidebar_groups or fo.DatasetAppConfig.default_sidebar_groups(
        dataset
    )
    placed = {path for group in groups if group.name == GROUP for path in group.paths}
    if not placed >= set(kept):
        for group in groups:
            group.paths = [path for path in group.paths if path not in kept]
        own = next((group for group in groups if group.name == GROUP), None)
        if own is None:
            own = fo.SidebarGroupDocument(name=GROUP, paths=[], expanded=False)
            groups.append(own)
        own.paths = sorted({*own.paths, *kept})
        config.sidebar_groups = groups
    shown = config.active_fields
    if shown is not None and not shown.exclude:
        paths = (o if dataset.has_sample_field(o) else frames_field(o) for o in outputs)
        shown.paths = list(dict.fromkeys([*shown.paths, *paths]))
    if config.color_scheme is None:
        config.color_scheme = fo.ColorScheme(color_by="instance")
    dataset.save()
