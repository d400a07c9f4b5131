from __future__ import annotations

from pathlib import Path

import pytest

from fiftyone_regioncap.jobs import costs


def test_costs_are_remembered_and_newer_ones_count_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path))
    assert costs.measured_cost("caption", "dam") is None
    assert costs.expected_cost("caption", "dam") > 0
    costs.remember_cost("caption", "dam", 4.0)
    costs.remember_cost("caption", "other", 1.0)
    assert costs.measured_cost("caption", "dam") == 4.0
    costs.remember_cost("caption", "dam", 2.0)
    assert costs.measured_cost("caption", "dam") == 3.0
    assert costs.expected_cost("caption", "other") == 1.0


@pytest.mark.parametrize("text", ["", "{", "[]"], ids=["empty", "torn", "a list"])
def test_a_damaged_file_is_no_failure(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path))
    costs.remember_cost("caption", "dam", 4.0)
    (tmp_path / "jobs" / "costs.json").write_text(text)
    assert costs.measured_cost("caption", "dam") is None
    costs.remember_cost("caption", "dam", 2.0)
    assert costs.measured_cost("caption", "dam") == 2.0
