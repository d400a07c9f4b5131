from __future__ import annotations

import importlib

import pytest
from fiftyone.operators.executor import ExecutionContext

from tests.support import ROOT


@pytest.fixture
def operator(monkeypatch):
    """Gives an operator out of its file, registered or not."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(module: str, kind: str):
        return getattr(importlib.import_module(f"operators.{module}"), kind)()

    return load


def form(operator, dataset):
    context = ExecutionContext(
        {"dataset_name": dataset.name, "view": [], "params": {}},
        operator_uri=operator.uri,
    )
    return operator.resolve_input(context).to_json()["type"]["properties"]


def test_there_and_back_by_operators(operator, dataset, empty, contents_of, tmp_path):
    out = str(tmp_path / "out")
    done = operator("export_captions", "ExportCaptions")(
        dataset, format="youtube-vis", path=out, media="none"
    )
    assert done.ok and done.counts["tracks"] == 4
    back = operator("import_captions", "ImportCaptions")(
        empty, format="youtube-vis", path=out
    )
    assert back.ok and "2** videos imported" in back.to_markdown()
    assert contents_of(empty) == contents_of(dataset)


def test_only_reviewed_captions_leave(operator, dataset, tmp_path):
    done = operator("export_captions", "ExportCaptions")(
        dataset, format="csv", path=str(tmp_path / "out"), reviews="reviewed"
    )
    assert done.counts == {"captions": 2}


def test_forms_ask_for_a_format(operator, dataset, empty):
    inputs = form(operator("export_captions", "ExportCaptions"), dataset)
    assert {"format", "path", "captions", "media", "val"} <= inputs.keys()
    inputs = form(operator("import_captions", "ImportCaptions"), empty)
    assert {"format", "path", "tracks", "captions"} <= inputs.keys()


def test_without_captions_there_is_nothing_to_export(operator, empty):
    inputs = form(operator("export_captions", "ExportCaptions"), empty)
    assert "captions" in inputs["refusal"]["error_message"]
