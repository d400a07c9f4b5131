from __future__ import annotations

import fiftyone as fo
import pytest

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.runs import record_run, run_key


def test_keys_are_unique_identifiers() -> None:
    keys = {run_key("propagate") for _ in range(20)}
    assert len(keys) == 20
    assert all(key.isidentifier() and key.startswith("propagate_") for key in keys)


def test_a_kind_that_is_no_identifier() -> None:
    with pytest.raises(FieldError, match="two words"):
        run_key("two words")


def test_a_run_is_recorded_and_brought_up_to_date(dataset: fo.Dataset) -> None:
    key = run_key("propagate")
    record_run(dataset, key, {"model": "m", "options": {"field": "tracks"}})
    assert dataset.get_run_info(key).config.options == {"field": "tracks"}
    record_run(dataset, key, {"model": "m", "done": True}, {"frames": 3})
    assert dataset.list_runs() == [key]
    dataset.clear_cache()
    assert dataset.get_run_info(key).config.done is True
    assert dataset.load_run_results(key).frames == 3
