from __future__ import annotations

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import BackendError, FieldError
from fiftyone_regioncap.dataset.captions import write_captions
from tests.support.captions import check_captions, triage

TEXTS = [
    f"{color} {thing}"
    for color in ("a red", "the green", "one striped")
    for thing in ("car on the road", "dog asleep", "boat far away", "hat", "old piano")
]


@pytest.fixture
def described(fiftyone_database, tmp_path, monkeypatch):
    """Makes datasets of one video a list of captions, with an index of their own."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path))
    made = []

    def make(*videos):
        dataset = fo.Dataset()
        made.append(dataset)
        for number, records in enumerate(videos):
            sample = fo.Sample(filepath=f"/nowhere/{number}.mp4")
            dataset.add_sample(sample)
            write_captions(sample, "captions", records)
        return dataset

    yield make
    for dataset in made:
        dataset.delete()


@pytest.fixture
def dataset(described, seen):
    """Good captions, and two that regions have exchanged."""
    one, two = TEXTS[6], TEXTS[10]
    good = [seen(n, text, text) for n, text in enumerate(TEXTS) if n not in (6, 10)]
    return described(good, [seen(20, one, two), seen(21, two, one)])


def attributes(dataset, name):
    return dataset.values(f"captions.detections.{name}", unwind=True)


def test_captions_that_fit_other_regions_fail(dataset, described, seen):
    summary = check_captions(dataset, similarity=True)
    assert summary.by_check["similarity"] == 2
    view = dataset.load_saved_view("captions: check similarity")
    assert set(view.values("captions.detections.index", unwind=True)) == {20, 21}
    cosines = attributes(dataset, "image_text_similarity")
    assert min(cosines[:-2]) > 0.9 > max(cosines[-2:])
    assert max(attributes(dataset, "check_similarity")[:-2]) == 0
    notes = attributes(dataset, "check_notes")[-2:]
    assert all("other captions fit the region better" in note for note in notes)
    assert "half under" in summary.to_markdown()
    np.testing.assert_allclose(summary.similarity, np.percentile(cosines, (25, 50, 75)))


def test_sorting_by_it_shows_how_good_that_is(dataset):
    check_captions(dataset, similarity=True)
    ids = attributes(dataset, "id")
    reviews = {ids[0]: "accepted", ids[1]: "edited", ids[-1]: "rejected"}
    dataset.set_label_values("captions.detections.review", reviews)
    summary = triage(dataset, score="image_text_similarity", keep=0.9, drop=0.6)
    assert summary.counts["keep"] == len(TEXTS) - 2
    assert summary.precision == 0.5
    assert "50.0% of the reviewed ones in keep" in summary.to_markdown()


def test_a_view_is_compared_with_captions_of_the_whole_dataset(dataset):
    summary = check_captions(dataset[1:], similarity=True)
    assert summary.captions == 2 and summary.by_check["similarity"] == 2
    assert attributes(dataset, "image_text_similarity")[0] is None


def test_few_captions_have_no_rank_but_a_cosine(described, seen):
    dataset = described([seen(1, "a red car", "a brown dog"), seen(2, "a dog", None)])
    summary = check_captions(dataset, similarity=True)
    assert summary.by_check["similarity"] == 0
    assert attributes(dataset, "check_similarity") == [None, None]
    cosine, none = attributes(dataset, "image_text_similarity")
    assert -1 <= cosine <= 1 and none is None


def test_what_is_missing_is_said(described, dataset, seen):
    plain = described([seen(1, "A car.", None)])
    assert "similarity" not in check_captions(plain).by_check
    assert not plain.has_field("captions.detections.check_similarity")
    with pytest.raises(FieldError, match="no region embeddings"):
        check_captions(plain, similarity=True)
    with pytest.raises(FieldError, match="similarity=True"):
        triage(plain, score="image_text_similarity")
    with pytest.raises(BackendError, match="can't be loaded"):
        check_captions(dataset, similarity=True, model="/nowhere/model")
