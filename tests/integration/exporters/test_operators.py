from __future__ import annotations

import importlib

import pytest
from fiftyone.operators.executor import ExecutionContext

from tests.support import ROOT


@pytest.fixture
def operator(monkeypatch):
    """Gives an operator by its class, registered or not."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(kind: str):
        package = importlib.import_module("operators")
        (found,) = (one for one in package.OPERATORS if one.__name__ == kind)
        return found()

    return load


def form(operator, dataset):
    context = ExecutionContext(
        {"dataset_name": dataset.name, "view": [], "params": {}},
        operator_uri=operator.uri,
    )
    return operator.resolve_input(context).to_json()["type"]["properties"]


def test_there_and_back_by_operators(operator, dataset, empty, contents_of, tmp_path):
    out = str(tmp_path / "out")
    done = operator("ExportCaptions")(
        dataset, format="youtube-vis", path=out, media="none"
    )
    assert done.ok and done.counts["tracks"] == 4
    back = operator("ImportCaptions")(empty, format="youtube-vis", path=out)
    assert back.ok and "2** videos imported" in back.to_markdown()
    assert contents_of(empty) == contents_of(dataset)


def test_only_reviewed_captions_leave(operator, dataset, tmp_path):
    done = operator("ExportCaptions")(
        dataset,
        format="csv",
        path=str(tmp_path / "out"),
        reviews=("accepted", "edited"),
    )
    assert done.counts == {"captions": 2}


def test_forms_ask_for_a_format(operator, dataset, empty):
    inputs = form(operator("ExportCaptions"), dataset)
    assert {"format", "path", "captions", "media", "val"} <= inputs.keys()
    inputs = form(operator("ImportCaptions"), empty)
    assert {"format", "path", "tracks", "captions"} <= inputs.keys()


def test_without_captions_there_is_nothing_to_export(operator, empty):
    inputs = form(operator("ExportCaptions"), empty)
    assert "tracks" in inputs["refusal"]["error_message"]
