"""Folders in the cache that belong to datasets, and go when these are deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import fiftyone as fo
from fiftyone.core.odm import get_db_conn

from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.system import assets


def dataset_folder(kind: str, dataset: fo.Dataset) -> Path:
    """Returns the folder of a dataset, which can be deleted at any time.

    Args:
        kind: What it holds, such as ``"search"``.
        dataset: The dataset.
    """
    return _root(kind) / str(dataset._doc.id)


def remove_abandoned(kind: str) -> None:
    """Removes the folders of datasets that were deleted.

    Args:
        kind: What they hold.
    """
    root = _root(kind)
    if not root.is_dir():
        return
    known = {str(found["_id"]) for found in get_db_conn().datasets.find({}, {"_id": 1})}
    for path in root.iterdir():
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


def _root(kind: str) -> Path:
    # Ids tell datasets apart, but only the database that has one can say if it exists.
    return assets.cache_dir() / kind / locks.database_id()
