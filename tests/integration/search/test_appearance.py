"""Search and maps by how regions look, whatever was said of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from fiftyone_regioncap.captioning.patchioner.text_encoder import PatchionerTexts
from fiftyone_regioncap.core.errors import BackendError, FieldError, PromptError
from fiftyone_regioncap.dataset.captions import clear_captions, write_captions
from fiftyone_regioncap.search import appearance
from fiftyone_regioncap.search.appearance import RegionTextEmbedder, select_encoder
from fiftyone_regioncap.search.results import known_spaces, open_index
from tests.support.captions import embed_captions, search
from tests.support.patchioner import write_random_checkpoint

CAR, DOG, BOAT = "a red car", "a brown dog asleep", "a boat on the lake"


@pytest.fixture(autouse=True)
def forget():
    """Models are loaded anew, as in another process."""
    appearance.load.cache_clear()


@pytest.fixture
def dataset(described, seen):
    """Captions that say nothing of what the regions look like."""
    return described(
        [seen(1, "Thing one.", CAR), seen(2, "Thing two.", DOG)],
        [seen(3, "Thing three.", BOAT), seen(4, "Never seen.", None)],
    )


def found(samples, query, **options):
    results = search(samples, query, mode="visual", **options)
    return [hit.caption for hit in results.hits]


def test_regions_are_found_by_their_looks(dataset):
    for query, caption in ((CAR, "Thing one."), (DOG, "Thing two.")):
        results = search(dataset, query, mode="visual")
        assert results.hits[0].caption == caption and results.note is None
        scores = [hit.score for hit in results.hits]
        assert scores == sorted(scores, reverse=True) and scores[0] > 0.9
        assert len(scores) == 3  # what was never seen isn't found
        assert results.view("score").first().captions.caption == caption
    assert found(dataset[1:], CAR)[0] == "Thing three."
    assert found(dataset, f"{CAR} -one") != found(dataset, CAR)
    assert found(dataset, f'{CAR} "thing two"') == ["Thing two."]
    assert len(found(dataset, CAR, k=1)) == 1


def test_a_clone_keeps_them(dataset):
    clone = dataset.clone()
    assert found(clone, BOAT)[0] == "Thing three."
    clone.delete()


def test_what_changes_is_noticed(dataset, seen):
    assert found(dataset, CAR)[0] == "Thing one."
    one, two = dataset
    # The same words of another look, a new caption, and one without looks.
    write_captions(one, "captions", [seen(1, "Thing one.", DOG, noise=0.3)])
    new = [seen(5, "Thing five.", CAR), seen(3, "Thing three.", None)]
    write_captions(two, "captions", new)
    assert found(dataset, CAR)[0] == "Thing five."
    assert set(found(dataset, DOG)[:2]) == {"Thing one.", "Thing two."}
    assert "Thing three." not in found(dataset, BOAT)
    # Captions that go away leave their rows to new ones.
    clear_captions(two, "captions")
    assert set(found(dataset, CAR)) == {"Thing one.", "Thing two."}
    write_captions(two, "captions", [seen(6, "Thing six.", None)])
    assert set(found(dataset, CAR)) == {"Thing one.", "Thing two."}
    dataset.delete_samples(one)
    with pytest.raises(FieldError, match="no region embeddings"):
        found(dataset, CAR)


def test_embeddings_that_were_deleted_are_not_found(dataset):
    assert found(dataset, CAR)
    dataset.delete_sample_field("captions.detections.region_embedding")
    with pytest.raises(FieldError, match="no region embeddings"):
        found(dataset, CAR)


def test_captions_that_come_while_regions_are_compared(dataset, seen):
    """Another thread or process indexes them between two steps of a search."""
    captions = search(dataset, CAR, mode="visual").captions
    index = open_index(captions)
    (known,) = known_spaces(captions, index)
    encoder = RegionTextEmbedder(select_encoder([known], "captions"))
    write_captions(dataset.first(), "captions", [seen(9, "Thing nine.", CAR)])
    open_index(captions)
    ids = dataset.values("captions.detections.id", unwind=True)
    hits = index.search(CAR, 5, mode="visual", embedder=encoder, ids=ids)
    assert "Thing three." in [hit.caption for hit in hits]


def test_only_what_changed_is_read_again(dataset, monkeypatch):
    found(dataset, CAR)
    # As if the last change had been long ago.
    monkeypatch.setattr("fiftyone_regioncap.search.source._SETTLED", timedelta(0))
    found(dataset, CAR)
    read = []
    index = open_index(search(dataset, "thing", mode="text").captions)
    source = index.regions.update

    def spy(changes, catalog):
        class Spy:
            def embeddings(self, since):
                for change in changes.embeddings(since):
                    read.append(change.sample)
                    yield change

        source(Spy(), catalog)

    monkeypatch.setattr(index.regions, "update", spy)
    assert found(dataset, CAR)[0] == "Thing one." and not read
    sample = dataset.last()
    sample["note"] = "changed"
    sample.save()
    assert found(dataset, CAR)[0] == "Thing one." and len(read) == 1


def test_without_embeddings(described):
    with pytest.raises(FieldError, match=r"no region embeddings.*patchioner"):
        found(described(["A car."]), CAR)


def test_a_model_that_moved_or_changed(described, seen, checkpoint, tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(checkpoint, home)
    space = PatchionerTexts.from_pretrained(home).space
    record = seen(1, "Thing one.", CAR)
    model = f"patchioner:{space.model}"
    moved = replace(record, embedding=replace(record.embedding, model=model))
    dataset = described([moved])
    assert found(dataset, CAR) == ["Thing one."]
    appearance.load.cache_clear()
    shutil.move(home, elsewhere)
    with pytest.raises(BackendError, match=r"not on this machine.*model="):
        found(dataset, CAR)
    with pytest.raises(BackendError, match=r"can't be loaded here.*model="):
        found(dataset, CAR, model=str(home))
    assert found(dataset, CAR, model=str(elsewhere)) == ["Thing one."]
    own = PatchionerTexts.from_pretrained(elsewhere)
    assert found(dataset, CAR, model=own) == ["Thing one."]
    # Embedded again from there, it is found there.
    model = f"patchioner:{elsewhere}"
    new = replace(moved, embedding=replace(record.embedding, model=model))
    write_captions(dataset.first(), "captions", [new])
    assert found(dataset, CAR) == ["Thing one."]
    write_captions(dataset.first(), "captions", [moved])
    write_random_checkpoint(home, seed=1)
    appearance.load.cache_clear()
    with pytest.raises(BackendError, match=r"is another model now.*embed the regions"):
        found(dataset, CAR)


def test_what_a_dataset_names_is_not_downloaded(described, seen, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", asked.append)
    record = seen(1, "Thing one.", CAR)
    embedding = replace(record.embedding, model="patchioner:somebody/else")
    dataset = described([replace(record, embedding=embedding)])
    with pytest.raises(BackendError, match="not on this machine"):
        found(dataset, CAR)
    assert not asked


def test_vectors_of_nobody_knows_whom_are_passed_over(dataset):
    path = "captions.detections.region_embedding_revision"
    dataset.set_values(path, [[None, None], [None, None]])
    with pytest.raises(FieldError, match="no region embeddings"):
        found(dataset, CAR)


def test_models_of_sentences_are_not_those_of_regions(dataset, embedder, checkpoint):
    with pytest.raises(BackendError, match="can't be compared with regions"):
        found(dataset, CAR, model=embedder)
    encoder = PatchionerTexts.from_pretrained(checkpoint)
    with pytest.raises(BackendError, match="mode='visual'"):
        search(dataset, CAR, mode="semantic", model=encoder)
    with pytest.raises(PromptError, match="77"):
        found(dataset, "car " * 100)


def test_regions_of_another_model_are_left_out(dataset, seen, tmp_path):
    other = write_random_checkpoint(tmp_path / "other", seed=1)
    space = PatchionerTexts.from_pretrained(other).space
    record = seen(7, "Thing seven.", CAR)
    embedding = replace(
        record.embedding,
        revision=space.fingerprint,
        model=f"patchioner:{space.model}",
    )
    write_captions(dataset.first(), "captions", [replace(record, embedding=embedding)])
    results = search(dataset, CAR, mode="visual")
    assert "Thing seven." not in [hit.caption for hit in results.hits]
    assert "1 regions embedded by another model" in results.note
    assert found(dataset, CAR, model=str(other)) == ["Thing seven."]


def test_many_regions_are_compared_by_a_sketch_first(dataset, monkeypatch):
    monkeypatch.setattr("fiftyone_regioncap.search.vectors.SKETCH_FROM", 3)
    assert found(dataset, DOG)[0] == "Thing two."
    assert found(dataset, BOAT)[0] == "Thing three."


def alike(seen):
    """Two kinds of looks, three each, whose captions tell nothing of it."""
    return [
        seen(n, f"{'A red car' if n % 2 else 'Some brown dog'} number {n}.", look)
        for n, look in enumerate((CAR, CAR, CAR, DOG, DOG, DOG), 1)
    ]


def test_maps_of_looks(described, seen, embedder):
    dataset = described(alike(seen))
    embed_captions(dataset, model=embedder, layout="pca")
    options = {"space": "visual", "layout": "pca"}
    summary = embed_captions(dataset, clusters=2, duplicate=0.9, **options)
    assert summary.captions == 6 and summary.key == "captions_visual_map"
    assert summary.duplicates == 4 and "look nearly the same" in summary.to_markdown()
    view = dataset.load_saved_view("captions: visual map")
    points = view.load_brain_results(summary.key).points
    order = np.argsort(view.values("captions.index"))
    cars, dogs = points[order][:3], points[order][3:]
    assert np.linalg.norm(cars[0] - cars[1]) < np.linalg.norm(cars[0] - dogs[0]) / 2
    labels = dataset.first().captions.detections
    assert len({label.visual_cluster for label in labels[:3]}) == 1
    assert labels[2].visual_duplicate_of == labels[0].id
    assert labels[2].duplicate_of != labels[0].id  # the map of texts stays
    run = f"{summary.key}_similarity"
    for _ in range(2):
        first = view.sort_by_similarity(DOG, k=3, brain_key=run)
        assert set(first.values("captions.index")) == {4, 5, 6}
        dataset.clear_cache()
        appearance.load.cache_clear()
    config = dataset.get_run_info(f"{summary.key}_texts").config
    assert (
        config.region_space["fingerprint"]
        == view.load_brain_results(run).config.region_space["fingerprint"]
    )


def test_maps_of_looks_without_the_model(described, seen, checkpoint, tmp_path):
    records = [
        replace(own, embedding=replace(own.embedding, model="patchioner:/nowhere/m"))
        for own in alike(seen)
    ]
    dataset = described(records, [seen(9, "Never seen.", None)])
    options = {"space": "visual", "layout": "pca"}
    summary = embed_captions(dataset, **options)
    assert summary.captions == 6 and "takes no texts" in summary.notes[0]
    view = dataset.load_saved_view(summary.view)
    run = f"{summary.key}_similarity"
    similar = view.sort_by_similarity(view.first().id, k=3, brain_key=run)
    assert set(similar.values("captions.index")) == {1, 2, 3}
    with pytest.raises(BackendError, match="can't be loaded"):
        embed_captions(dataset, model="/nowhere/else", **options)
    with pytest.raises(FieldError, match="no region embeddings"):
        embed_captions(described(["A car.", "A dog."]), **options)
