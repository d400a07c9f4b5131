"""What a job leaves for the App's sidebar and colors."""

from __future__ import annotations

from collections.abc import Iterator

import fiftyone as fo
import pytest

from fiftyone_regioncap.dataset import appearance, schema, status


@pytest.fixture
def dataset(fiftyone_database: str) -> Iterator[fo.Dataset]:
    made = fo.Dataset()
    made.add_sample(fo.Sample(filepath="/nowhere/a.mp4"))
    schema.declare_captions(made, "captions")
    schema.declare_origins(made, "captions")
    status.write_status(made.first(), "captions", "partial")
    yield made
    made.delete()


def group(dataset: fo.Dataset) -> list[fo.SidebarGroupDocument]:
    groups = dataset.app_config.sidebar_groups
    return [one for one in groups if one.name == appearance.GROUP]


def test_bookkeeping_is_read_only_in_one_closed_group(dataset: fo.Dataset) -> None:
    for _ in range(2):
        appearance.tidy(dataset, "frames.tracks", "captions")
    (own,) = group(dataset)
    assert own.paths == ["captions_error", "captions_origin", "captions_status"]
    assert own.expanded is False
    others = [one for one in dataset.app_config.sidebar_groups if one is not own]
    assert not {path for one in others for path in one.paths} & set(own.paths)
    assert all(dataset.get_field(path).read_only for path in own.paths)
    assert not dataset.get_field("captions").read_only
    # Jobs go on writing them.
    status.write_status(dataset.first(), "captions", "complete")
    assert status.read_status(dataset.first(), "captions").state == "complete"


def test_objects_are_told_apart_by_color_unless_a_person_chose(dataset) -> None:
    appearance.tidy(dataset, "captions")
    assert dataset.app_config.color_scheme.color_by == "instance"
    dataset.app_config.color_scheme = fo.ColorScheme(color_by="value")
    appearance.tidy(dataset, "captions")
    assert dataset.app_config.color_scheme.color_by == "value"
