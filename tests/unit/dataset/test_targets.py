"""Targets: what workers claim of a sample."""

from __future__ import annotations

import pytest

from fiftyone_regioncap.dataset.leases import sample_of
from fiftyone_regioncap.dataset.targets import Target


@pytest.mark.parametrize(
    ("ranges", "units"),
    [
        (None, ["a"]),
        (((0, 6),), ["a"]),
        (((6, 12), (0, 6)), ["a:0-6", "a:6-12"]),
        (((0, 7), (6, 12)), ["a"]),
    ],
    ids=["whole", "one clip", "two clips", "clips that overlap"],
)
def test_clips_are_claimed_apart(ranges, units) -> None:
    apart = list(Target("a", ranges).apart())
    assert [target.unit for target in apart] == units
    assert {sample_of(target.unit) for target in apart} == {"a"}
    covered = [one for target in apart for one in target.ranges or ()]
    assert sorted(covered) == sorted(ranges or ())
    for target in apart:
        assert len(target.others) == len(apart) - 1
