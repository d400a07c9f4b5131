from __future__ import annotations

import re
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import fiftyone as fo
import pytest
from fiftyone import ViewField as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import BackendError, FieldError, RegionCapError
from fiftyone_regioncap.core.markdown import plain
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    clear_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.schema import declare_captions
from fiftyone_regioncap.review import session as review
from fiftyone_regioncap.review.queue import ReviewQueue
from fiftyone_regioncap.search import Query, QueryError, embedding, results
from fiftyone_regioncap.search.catalog import Catalog
from fiftyone_regioncap.search.index import CaptionIndex, index_folder
from fiftyone_regioncap.search.source import FieldSource
from fiftyone_regioncap.search.text_index import TextIndex
from tests.integration.conftest import describing
from tests.support.captions import search

HOSTILE = '<b>{{ $where }}</b> "quoted" \' OR 1=1; -- مرحبا 🚗'
VIDEOS = (
    ["A red car turning left at the crossing.", "A blue truck stands still."],
    ["A dog runs to the left.", "Two red cars are racing.", HOSTILE],
    ["A car, red as fire, turns right.", "", "x " * 5000 + "zebra"],
)


def texts(results):
    return [hit.caption for hit in results.hits]


def find(dataset, query, mode="text", **options):
    return search(dataset, query, mode=mode, **options)


@pytest.mark.parametrize(
    ("query", "firsts"),
    [
        ("truck", {1}),
        ("trucks", {1}),  # stemmed
        ("RACING", {3}),
        ('"red car"', {0, 3}),  # word by word, not "car, red"
        ('car -"red car"', {5}),
        ("red -car", set()),
        ("dog zebra", {2, 6}),  # none has both
        ("turned red car", {0, 5}),  # those with all words come before others
        ("مرحبا", {4}),
        ("quoted OR 1=1; --", {4}),
        ("thing", {0, 1, 2, 3, 4, 5, 6}),  # the label
        ("unheard-of", set()),
    ],
)
def test_words_phrases_and_exclusion(described, query, firsts):
    dataset = described(*VIDEOS)
    captions = [text for video in VIDEOS for text in video if text]
    found = texts(find(dataset, query))
    assert set(found[: max(len(firsts), 1)]) == {captions[place] for place in firsts}


LANGUAGES = (
    "L'école est près d'un café.",
    unicodedata.normalize("NFD", "Un élève à l'hôtel"),
    "A ferry leaves İSTANBUL.",
    "Die STRASSE ist naß",
    "A ｆｕｌｌ ﬁle",
    "一辆红色汽车停在路边。",
    "赤い車が左に曲がる",
    "자동차가 멈춘다",
    "รถยนต์สีแดง",
)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("ecole", {0}),
        ("ÉCOLE", {0}),
        (unicodedata.normalize("NFD", "école"), {0}),
        ("élève", {1}),
        ("hotel", {1}),
        ("istanbul", {2}),
        ("ıstanbul", {2}),
        ("straße", {3}),
        ("NASS", {3}),
        ("full", {4}),
        ("file", {4}),
        ("ＦＩＬＥ", {4}),
        ("汽车", {5}),
        ("红车", {5}),  # without what is between
        ("车红 汽路", {5}),
        ("车", {5}),
        ("蓝色汽车", {5}),  # some of it
        ('"色汽"', {5}),
        ('"蓝色汽车"', set()),
        ("路边 -汽车", set()),
        ("車", {6}),
        ("左", {6}),
        ("자동차", {7}),
        ("รถ", {8}),
        ("“près d’un”", {0}),
        ("«un café»", {0}),
        ("ferry −“leaves istanbul”", set()),
    ],
)
def test_words_however_they_are_typed(languages, query, found):
    assert texts(find(languages, query)) == [LANGUAGES[place] for place in found]


@pytest.fixture(scope="module")
def languages(fiftyone_database, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGIONCAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        with describing() as make:
            yield make(LANGUAGES)


def test_tags_and_attributes_are_found_too(described):
    record = CaptionRecord(
        1,
        (0, 9),
        caption="It moves.",
        tags=(("vehicle", 0.9),),
        attributes=(("pattern:striped", 0.8),),
    )
    dataset = described([record, "A vehicle."])
    assert len(find(dataset, "vehicle")) == 2
    assert texts(find(dataset, "striped")) == ["It moves."]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_text_is_a_query_or_looks_for_nothing(built, text):
    try:
        Query.parse(text)
    except QueryError:
        assert not any(c.isalnum() for c in text.split("-")[0])
        return
    for mode in ("text", "hybrid"):
        assert len(built(text, mode)) <= 3


@pytest.fixture
def built(described, embedder):
    dataset = described(*VIDEOS)
    return lambda text, mode: find(dataset, text, mode, model=embedder, k=3)


@pytest.mark.parametrize("query", ["", "  ", "-red", '""', "-", "?!", '-"red car"'])
def test_a_query_for_nothing_is_an_error_that_says_so(described, query):
    with pytest.raises(QueryError, match="at least one word"):
        find(described(*VIDEOS), query)


def test_meaning_ranks_by_similarity_and_keeps_to_phrases_and_exclusion(
    described, embedder
):
    dataset = described(*VIDEOS)
    results = find(dataset, "red car turning", "semantic", model=embedder, k=3)
    similarities = [hit.similarity for hit in results.hits]
    assert results.hits[0].caption == VIDEOS[0][0]
    assert similarities == sorted(similarities, reverse=True)
    assert all(hit.bm25 is None for hit in results.hits)
    without = find(dataset, "red car turning -racing", "semantic", model=embedder)
    assert VIDEOS[1][1] not in texts(without) and VIDEOS[0][0] in texts(without)
    phrase = find(dataset, 'left "red car"', "semantic", model=embedder)
    assert set(texts(phrase)) == {VIDEOS[0][0], VIDEOS[1][1]}


def test_captions_with_the_words_are_told_from_those_that_are_only_near(
    described, embedder
):
    dataset = described(*VIDEOS)
    found = find(dataset, "racing dogs", "hybrid", model=embedder, k=3)
    assert found.tally() == "2 with words of the query, 1 near in meaning"
    nowhere = find(dataset, "unheard-of", "hybrid", model=embedder, k=3)
    assert nowhere.tally() == "0 with words of the query, 3 near in meaning"
    assert find(dataset, "unheard-of").tally() == "nothing found"


def test_fused_ranks(described, embedder):
    """A caption that is first in both lists gets 1, one that is in one list half."""
    dataset = described(*VIDEOS)
    hits = find(dataset, "red car turning left", "hybrid", model=embedder).hits
    assert hits[0].score == pytest.approx(1.0)
    assert hits[0].bm25 is not None and hits[0].similarity is not None
    only_meaning = [hit for hit in hits if hit.bm25 is None]
    assert only_meaning and all(hit.score < 0.5 for hit in only_meaning)


def test_results_are_a_ranked_view_of_clips_with_scores(described):
    dataset = described(*VIDEOS)
    results = find(dataset, "red cars turning left")
    view = results.view("relevance")
    assert view.media_type == "video" and len(view) == len(results) == 4
    assert view.values("id") == [hit.id for hit in results.hits]
    assert view.values("captions.caption") == texts(results)
    assert view.values("captions.relevance") == [hit.score for hit in results.hits]
    assert view.first().support == [1, 10]


def test_only_what_is_in_the_view_is_found(described, embedder):
    dataset = described(*VIDEOS)
    for mode in ("text", "semantic", "hybrid"):
        last = find(dataset[2:], "red car", mode, model=embedder)
        assert VIDEOS[2][0] in texts(last) and set(texts(last)) <= set(VIDEOS[2])
        labels = dataset.filter_labels("captions", F("caption").contains_str("dog"))
        assert texts(find(labels, "red dog", mode, model=embedder)) == [VIDEOS[1][0]]
        clips = dataset[:1].to_clips("captions")
        assert set(texts(find(clips, "red car", mode, model=embedder))) <= set(
            VIDEOS[0]
        )


def test_only_what_changed_is_read_again(described, embedder):
    dataset = described(*VIDEOS)
    find(dataset, "red", "hybrid", model=embedder)
    embedder.embedded.clear()
    find(dataset, "red", "hybrid", model=embedder)
    assert embedder.embedded == ["red"]  # the query, and no caption

    sample = dataset.first()
    new = CaptionRecord(1, (0, 9), caption="A green tram.")
    write_captions(sample, "captions", [new])
    embedder.embedded.clear()
    assert texts(find(dataset, "tram", "hybrid", model=embedder))[0] == "A green tram."
    assert embedder.embedded == ["A green tram.", "tram"]
    assert not find(dataset, "crossing")

    label = dataset.last().captions.detections[0]
    dataset.delete_labels(ids=[label.id])
    dataset.delete_samples([sample.id])
    assert not find(dataset, "tram") and not find(dataset, "fire")
    for mode in ("semantic", "hybrid"):
        left = texts(find(dataset, "green tram fire", mode, model=embedder))
        assert set(left) <= {*VIDEOS[1], VIDEOS[2][2]}


@pytest.mark.parametrize("seconds", [3600, -1], ids=["clock ahead", "late write"])
def test_changes_whose_times_are_out_of_order_are_read(described, seconds):
    dataset = described(["A red car."], ["A blue bus."])
    samples = dataset._sample_collection
    first, last = dataset.values("_id")
    time = dataset.max("last_modified_at") + timedelta(seconds=max(seconds, 0))
    samples.update_one({"_id": first}, {"$set": {"last_modified_at": time}})
    assert texts(find(dataset, "bus")) == ["A blue bus."]
    change = {
        "captions.detections.0.caption": "A whale.",
        "last_modified_at": time + timedelta(seconds=min(seconds, -1)),
    }
    samples.update_one({"_id": last}, {"$set": change})
    assert texts(find(dataset, "whale")) == ["A whale."]


def test_a_label_that_moves_to_another_sample_leaves_nothing_behind(described):
    dataset = described(["A red car.", "A blue bus."], ["A green frog."])
    find(dataset, "car")
    one, other = dataset
    moved, *kept = one.captions.detections
    other.captions.detections.append(moved)
    other.save()
    one.captions.detections = kept
    one.save()
    assert texts(find(dataset, "car", k=1)) == ["A red car."]
    index = TextIndex(index_folder(dataset, "captions") / "words")
    assert index._index.searcher().num_docs == 3


def test_the_last_captions_leave_no_vectors_behind(described, embedder):
    dataset = described(["A red car."], ["A red bus."], ["A green frog."])
    options = {"mode": "semantic", "model": embedder, "k": 1}
    assert texts(find(dataset, "green frog", **options)) == ["A green frog."]
    dataset.delete_samples(dataset.last())
    assert len(find(dataset, "green frog", **options)) == 1


@pytest.mark.parametrize("k", [2**31, 2**63 - 1])
@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_more_results_than_there_are(described, embedder, mode, k):
    dataset = described(*VIDEOS)
    assert len(find(dataset, "red", mode, k=k, model=embedder)) >= 3


def test_a_search_after_no_change_writes_nothing(described):
    dataset = described(*VIDEOS)
    folder = index_folder(dataset, "captions") / "words"

    def written():
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    found = texts(find(dataset, "truck"))
    before = written()
    assert texts(find(dataset, "truck")) == found
    assert written() == before
    write_captions(dataset.first(), "captions", [CaptionRecord(9, (0, 9), "a", "Sun")])
    assert texts(find(dataset, "sun")) == ["Sun"]
    assert written() != before


def test_what_an_interrupted_update_left_is_removed(described, monkeypatch):
    dataset = described(*VIDEOS)
    captions = sum(bool(text) for video in VIDEOS for text in video)
    find(dataset, "truck")
    sample = dataset.first()
    write_captions(sample, "captions", [CaptionRecord(9, (0, 9), "a", "A truck")])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Catalog, "_set", raise_interrupt)
        find(dataset, "truck")
    clear_captions(sample, "captions", keep={(1, (0, 9)), (2, (0, 9))})
    assert texts(find(dataset, "truck")) == [VIDEOS[0][1]]
    index = TextIndex(index_folder(dataset, "captions") / "words")
    assert index._index.searcher().num_docs == captions


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_captions_of_image_regions_are_found_as_patches(fiftyone_database, cache):
    dataset = fo.Dataset()
    box = [0.1, 0.1, 0.5, 0.5]
    for text in ("A red boat on a lake.", None, "A cat."):
        detection = fo.Detection(label="thing", bounding_box=box, caption=text)
        sample = fo.Sample(filepath=f"/nowhere/{text}.png")
        sample["regions"] = fo.Detections(detections=[detection])
        dataset.add_sample(sample)
    dataset.add_dynamic_sample_fields()
    results = find(dataset, "boats", captions="regions")
    assert texts(results) == ["A red boat on a lake."]
    assert results.view().values("regions.caption") == texts(results)
    dataset.delete()


def test_without_the_model_words_still_work_and_it_says_what_to_install(
    described, monkeypatch
):
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None)
    embedding.load.cache_clear()  # of tests before this one
    dataset = described(*VIDEOS)
    results = search(dataset, "truck")
    assert results.mode == "text" and len(results) == 1
    assert "pip install" in results.note
    with pytest.raises(BackendError, match="pip install sentence-transformers"):
        find(dataset, "truck", "semantic")


def test_a_wrong_field_is_an_error_that_names_the_right_ones(described):
    with pytest.raises(FieldError, match="captions"):
        find(described(*VIDEOS), "red", captions="nope")


def test_no_phrase_reaches_from_a_caption_into_its_label(described):
    record = CaptionRecord(1, (0, 9), label="car", caption="It is red")
    assert not find(described([record]), '"red car"')
    assert find(described([record]), "red car")


@pytest.mark.parametrize(
    "videos", [[], [[]], [["", ""]]], ids=["no video", "no caption", "empty captions"]
)
@pytest.mark.parametrize("mode", ["text", "semantic", "hybrid"])
def test_without_captions_nothing_is_found(described, embedder, videos, mode):
    dataset = described(*videos)
    if not videos:
        dataset.media_type = "video"
        declare_captions(dataset, "captions")
    for _ in range(2):
        results = find(dataset, "red car", mode, model=embedder)
        assert len(results) == 0 and len(results.view()) == 0
    assert len(find(dataset.view(), "red", mode, model=embedder).view("score")) == 0


def test_the_index_can_be_deleted_at_any_time(described, embedder, cache):
    dataset = described(*VIDEOS)
    for _ in range(2):
        found = find(dataset, "red car", "hybrid", model=embedder)
        assert texts(found)[0] == VIDEOS[1][1]
        shutil.rmtree(cache / "search")


def test_an_index_that_another_process_made_anew_is_opened_anew(described):
    dataset = described(["A red car."], ["A blue bus."], ["A green frog."])
    captions = find(dataset, "car").captions
    folder = index_folder(dataset, "captions")
    shutil.rmtree(folder)
    dataset.delete_samples(dataset.first())  # so that the others have other rows
    other = CaptionIndex(folder)
    other.update(FieldSource(captions))
    other.close()
    assert texts(find(dataset, "frog")) == ["A green frog."]


def test_the_index_of_a_deleted_dataset_is_removed(described):
    dataset = described(*VIDEOS)
    copy = dataset.clone()
    find(copy, "red")
    folder = index_folder(copy, "captions")
    assert folder.is_dir()
    copy.delete()
    find(dataset, "red")
    assert not folder.parent.exists()
    assert index_folder(dataset, "captions").is_dir()


@pytest.mark.parametrize("name", ["captions", "words/meta.json"])
def test_a_damaged_index_is_an_error_that_says_what_to_delete(described, cache, name):
    dataset = described(*VIDEOS)
    find(dataset, "red")
    folder = index_folder(dataset, "captions")
    results._opened.cache_clear()  # as if in another process
    for file in folder.glob(f"{name}*"):
        file.write_bytes(b"no index" * 1000)
    with pytest.raises(RegionCapError, match=re.escape(str(folder))):
        find(dataset, "red")
    shutil.rmtree(folder)
    assert len(find(dataset, "red")) == 3


def test_searches_and_changes_from_many_threads(described, embedder):
    """The App's server runs operators and panels in threads of one process."""
    dataset = described(*VIDEOS, *([f"A tram {n}."] for n in range(24)))
    refs = ReviewQueue.of(dataset[3:], "captions").select()

    def work(number: int) -> int:
        action = review.edit(f"A ferry {number}.")
        review.apply(dataset, "captions", refs[number : number + 1], action)
        return len(find(dataset, "red car", "hybrid", model=embedder, k=3))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [3] * 24
    assert len(find(dataset, "ferry", k=50)) == 24


def test_captions_in_a_summary_are_shown_as_they_are(described):
    markdown = find(described(*VIDEOS), "quoted").to_markdown()
    assert r"\<b\>\{\{" in markdown and HOSTILE in plain(markdown)
