from __future__ import annotations

import threading

import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import Canceled
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.search import index
from fiftyone_regioncap.search.results import open_index

READERS = {
    "check_captions": {},
    "evaluate_captions": {
        "references": "captions",
        "reference_attribute": "label",
        "caption_attribute": "caption",
        "metrics": ("rouge_l",),
    },
    "extract_facets": {},
    "triage_captions": {},
}


@pytest.mark.parametrize("name", READERS)
def test_reading_captions_is_reported_and_can_be_canceled(described, name):
    dataset = described(["A red car."], ["A dog runs.", "A cat."])
    cancel = threading.Event()
    seen = []

    def listen(event):
        seen.append(event.fraction)
        cancel.set()

    run = getattr(api, name)
    with pytest.raises(Canceled):
        run(dataset, **READERS[name], progress=listen, cancel=cancel)
    assert seen == [0.0]
    run(dataset, **READERS[name], progress=lambda event: seen.append(event.fraction))
    assert seen[-1] == 1


def test_what_was_embedded_before_a_cancel_is_kept(
    described, embedder, cache, monkeypatch
):
    monkeypatch.setattr(index, "_BATCH", 2)
    dataset = described([f"A car number {number}." for number in range(6)])
    found = open_index(CaptionField.of(dataset, "captions"))
    cancel = threading.Event()
    with pytest.raises(Canceled):
        found.embed(embedder, lambda event: event.fraction and cancel.set(), cancel)
    assert len(embedder.embedded) == 4
    found.embed(embedder)
    assert len(embedder.embedded) == 6
