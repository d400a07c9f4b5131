from __future__ import annotations

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.markdown import plain
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.search import similarity
from fiftyone_regioncap.visualization.maps import MapSummary
from tests.support.captions import embed_captions

CARS = [f"A red car drives on road number {n}." for n in ("one", "two", "three")]
DOGS = [f"Some brown dog sleeps near house {n}." for n in ("one", "two", "three")]
ODD = "Quartz xylophones jubilantly vex."
VIDEOS = ([*CARS, "a red car drives on road number one"], [*DOGS], [ODD])


def make(dataset, embedder, **options):
    options = {"layout": "pca", "clusters": 3, **options}
    return embed_captions(dataset, model=embedder, **options)


def labels_of(dataset):
    return {
        label.caption: label
        for sample in dataset
        for label in sample.captions.detections
    }


def test_one_point_a_track_near_for_what_is_alike(described, embedder):
    dataset = described(*VIDEOS)
    summary = make(dataset, embedder)
    assert summary.captions == 8 and dataset.has_brain_run(summary.key)
    view = dataset.load_saved_view(summary.view)
    results = view.load_brain_results(summary.key)
    assert len(results.points) == len(view) == 8
    points = dict(zip(view.values("captions.caption"), results.points, strict=True))
    spread = np.linalg.norm(points[CARS[0]] - points[CARS[1]])
    assert spread < np.linalg.norm(points[CARS[0]] - points[DOGS[0]]) / 2

    similar = view.sort_by_similarity(
        view.first().id, k=2, brain_key=f"{summary.key}_similarity"
    )
    assert set(similar.values("captions.caption")) == {VIDEOS[0][0], VIDEOS[0][3]}


def test_the_map_of_videos_is_one_of_labels_that_any_view_takes_some_of(
    described, embedder
):
    dataset = described(*VIDEOS)
    summary = make(dataset, embedder)
    dataset.clear_cache()  # as in the process of the App
    results = dataset.load_brain_results(summary.key)
    # The Embeddings panel asks for these, to color points by attributes of labels.
    assert results.config.patches_field == "captions"
    assert set(results.sample_ids) == set(dataset.values("id"))
    clips = dataset.load_saved_view(summary.view)
    places = dict(zip(results.label_ids, results.points.tolist(), strict=True))
    for view, count in (
        (dataset, 8),
        (dataset.limit(1), 4),
        (clips, 8),
        (clips.skip(5).limit(2), 2),
        (dataset.to_clips([[[1, 2]]] * 3), 0),
    ):
        results.use_view(view)
        ids = results.current_label_ids.tolist()
        assert len(ids) == results.index_size == count
        assert results.current_points.tolist() == [places[i] for i in ids]
    # What a lasso selects are the clips of its points.
    ids = results.label_ids[2:5].tolist()
    assert clips.match_labels(fields=["captions"], ids=ids).values("id") == ids


def test_names_of_groups_leave_out_what_all_captions_speak_of(described, embedder):
    texts = [text.replace(".", " in the frame.") for text in (*CARS, *DOGS)]
    summary = make(described(texts), embedder, clusters=2)
    assert len(summary.clusters) == 2
    assert not any("frame" in name for name in summary.clusters)


def test_captions_that_came_after_the_map_are_missing_on_it(described, embedder):
    dataset = described(*VIDEOS)
    results = dataset.load_brain_results(make(dataset, embedder).key)
    sample = dataset.first()
    sample.captions.detections.append(
        fo.TemporalDetection(support=(1, 2), caption="A late one.")
    )
    sample.save()
    results.use_view(dataset.to_clips("captions"))
    assert (results.index_size, results.missing_size) == (8, 1)
    with pytest.raises(ValueError, match="1 captions"):
        results.use_view(dataset.view(), allow_missing=False)


def test_the_similarity_run_takes_texts_also_when_it_is_loaded_anew(
    described, embedder, monkeypatch
):
    dataset = described(*VIDEOS)
    summary = make(dataset, embedder)
    run = f"{summary.key}_similarity"
    view = dataset.load_saved_view(summary.view)
    query = "brown dog sleeps near house two"
    for _ in range(2):
        found = view.sort_by_similarity(query, k=1, brain_key=run)
        assert found.values("captions.caption") == [DOGS[1]]
        monkeypatch.setattr(similarity, "load", lambda name: embedder)
        dataset.clear_cache()
    assert dataset.get_brain_info(run).config.supports_prompts


def test_duplicates_outliers_and_groups_are_written(described, embedder):
    dataset = described(*VIDEOS)
    summary = make(dataset, embedder)
    labels = labels_of(dataset)
    copy = labels[VIDEOS[0][3]]
    assert copy.duplicate_of == labels[CARS[0]].id and summary.duplicates == 1
    assert all(label.duplicate_of is None for label in labels.values() if label != copy)
    assert max(labels.values(), key=lambda label: label.outlier).caption == ODD
    assert len({labels[text].cluster for text in CARS}) == 1
    assert labels[CARS[0]].cluster != labels[DOGS[0]].cluster
    names = {text: labels[text].cluster.split(", ") for text in (CARS[0], DOGS[0])}
    assert {"car", "red"} <= set(names[CARS[0]])
    assert {"dog", "brown"} <= set(names[DOGS[0]])
    assert sum(summary.clusters.values()) == 8
    duplicates = dataset.load_saved_view("captions: duplicates")
    assert duplicates.count("captions.detections") == 1


def test_a_map_can_be_made_again_and_embeds_only_what_is_new(described, embedder):
    dataset = described(*VIDEOS)
    make(dataset, embedder)
    embedder.embedded.clear()
    new = CaptionRecord(9, (0, 9), caption="A green tram.")
    write_captions(dataset.first(), "captions", [new])
    assert make(dataset, embedder).captions == 9
    assert embedder.embedded == ["A green tram."]
    assert dataset.list_brain_runs() == ["captions_map", "captions_map_similarity"]


def test_regions_of_images_are_points_too(fiftyone_database, cache, embedder):
    dataset = fo.Dataset()
    for texts in (CARS, DOGS):
        sample = fo.Sample(filepath=f"/nowhere/{texts[0]}.png")
        sample["regions"] = fo.Detections(
            detections=[
                fo.Detection(bounding_box=[0, 0, 0.5, 0.5], caption=text)
                for text in texts
            ]
        )
        dataset.add_sample(sample)
    dataset.add_dynamic_sample_fields()
    summary = make(dataset, embedder, captions="regions")
    results = dataset.load_brain_results(summary.key)
    assert len(results.points) == 6 and results.config.patches_field == "regions"
    texts = dict(
        zip(
            *dataset.values(
                ["regions.detections.id", "regions.detections.caption"], unwind=True
            ),
            strict=True,
        )
    )
    assert [texts[i] for i in results.label_ids] == [*CARS, *DOGS]
    dataset.delete()


def test_few_captions_are_laid_out_by_pca_and_none_is_an_error(described, embedder):
    dataset = described(["A car.", "A dog."])
    summary = make(dataset, embedder, layout="umap", clusters=None)
    assert summary.layout == "pca" and "too few for UMAP" in summary.notes[0]
    with pytest.raises(FieldError, match="at least two"):
        make(described(["A car."]), embedder)


@pytest.mark.slow
def test_umap_gives_the_same_map_twice(described, embedder):
    dataset = described(*VIDEOS, [f"A boat sails past pier {n}." for n in "abcdef"])
    points = []
    for _ in range(2):
        summary = make(dataset, embedder, layout="umap")
        assert summary.layout == "umap"
        view = dataset.load_saved_view(summary.view)
        points.append(view.load_brain_results(summary.key).points)
    np.testing.assert_array_equal(*points)


def test_names_in_a_summary_are_shown_as_they_are():
    summary = MapSummary(
        captions=2,
        layout="pca",
        space="text",
        key="a`*key*",
        clusters={"<b>*dog*</b>": 2},
        duplicates=0,
        view="__view__",
        notes=("![x](y)",),
    )
    markdown = summary.to_markdown()
    assert r"\<b\>\*dog\*" in markdown and r"\!\[x\]" in markdown
    assert "`a'*key*`" in markdown and "`__view__`" in markdown
    assert "- 2 of group <b>*dog*</b>" in plain(markdown)
