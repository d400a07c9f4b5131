from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.server.view as fosv
import numpy as np
import pytest

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding, space_of, vectors_of
from fiftyone_regioncap.dataset.regions import write_region_captions
from fiftyone_regioncap.exporters.captions import caption_from_json, caption_to_json

SPACE = EmbeddingSpace("patchioner", "/models/a:b", "0123abcd", 768)
PATH = "captions.detections.region_embedding"


def unit(seed: int, width: int = 768) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    return vector / np.linalg.norm(vector)


def record(seed: int, **attributes: Any) -> CaptionRecord:
    embedding = RegionEmbedding.of(unit(seed), SPACE)
    return CaptionRecord(
        seed, (0, 3), caption=f"A {seed}.", embedding=embedding, **attributes
    )


def test_what_is_stored_is_the_vector_in_half_precision() -> None:
    stored = RegionEmbedding.of(unit(1), SPACE)
    assert stored is not None
    assert unit(1) @ stored.vector() == pytest.approx(1, abs=1e-3)
    assert len(stored.data) < 1600  # bytes, of 768 numbers
    assert space_of(stored.model, stored.revision, 768) == SPACE
    np.testing.assert_allclose(
        np.linalg.norm(vectors_of([stored, stored]), axis=1), 1, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("vector", "space"),
    [
        pytest.param(None, SPACE, id="no vector"),
        pytest.param(unit(1), None, id="of nobody knows whom"),
        pytest.param(unit(1) * np.nan, SPACE, id="no numbers"),
    ],
)
def test_what_is_not_stored(vector: Any, space: Any) -> None:
    assert RegionEmbedding.of(vector, space) is None


def test_fiftyone_reads_them_and_a_new_caption_brings_its_own(
    dataset: fo.Dataset,
) -> None:
    sample = dataset.first()
    plain = CaptionRecord(9, (0, 3), caption="Without.")
    write_captions(sample, "captions", [plain])
    assert not dataset.has_field(PATH)  # only where there are any
    write_captions(sample, "captions", [record(1), record(2)])
    assert isinstance(dataset.get_field(PATH), fo.VectorField)
    first, _, none = dataset.values(PATH, unwind=True)
    assert first.dtype == np.float16 and first @ unit(1) > 0.999 and none is None
    assert read_captions(sample, "captions") == [record(1), record(2), plain]
    # Reviews and edits through FiftyOne keep them.
    sample.reload()
    sample.captions.detections[0]["review"] = "accepted"
    sample.save()
    assert read_captions(sample, "captions")[0] == record(1, review="accepted")
    write_captions(sample, "captions", [CaptionRecord(2, (0, 3), caption="New.")])
    assert read_captions(sample, "captions")[1].embedding is None


def test_they_go_where_labels_go(dataset: fo.Dataset, tmp_path: Path) -> None:
    write_captions(dataset.first(), "captions", [record(1), record(2)])
    dataset.export(
        str(tmp_path), dataset_type=fo.types.FiftyOneDataset, export_media=False
    )
    imported = fo.Dataset.from_dir(str(tmp_path), fo.types.FiftyOneDataset)
    merged = fo.Dataset()
    merged.add_sample(fo.Sample(dataset.first().filepath))
    merged.merge_samples(dataset)
    clone = dataset.clone()
    clips = dataset.to_clips("captions")
    for copy in (imported, merged, clone):
        kept = read_captions(copy.first(), "captions")
        assert [r.embedding for r in kept] == [record(n).embedding for n in (1, 2)]
        copy.delete()
    vectors = [clip.captions.region_embedding for clip in clips]
    assert [v @ unit(n) > 0.999 for n, v in enumerate(vectors, 1)] == [True, True]


def test_the_app_is_not_sent_them(dataset: fo.Dataset) -> None:
    write_captions(dataset.first(), "captions", [record(1)])
    view = fosv.get_view(dataset, pagination_data=True)
    document = next(iter(view._aggregate()))
    (label,) = document["captions"]["detections"]
    assert label["caption"] == "A 1." and "region_embedding" not in label


def test_texts_that_are_exported_leave_them_out() -> None:
    written = caption_to_json(record(1))
    assert "embedding" not in written
    assert caption_from_json({**written, "embedding": "x"}).embedding is None


def test_too_many_for_one_document(dataset: fo.Dataset) -> None:
    data = os.urandom(2**20)  # as large as a thousand vectors
    heavy = RegionEmbedding(data, "patchioner:m", "0123")
    many = [CaptionRecord(n, (0, 3), caption="x", embedding=heavy) for n in range(17)]
    with pytest.raises(FieldError, match=r"17 captions.*embeddings=false"):
        write_captions(dataset.first(), "captions", many)


def test_regions_of_images(images: fo.Dataset) -> None:
    sample = images.first()
    sample["objects"] = fo.Detections(
        detections=[fo.Detection(bounding_box=[0, 0, 0.5, 0.5]) for _ in "ab"]
    )
    sample.save()
    one, two = (label.id for label in sample.objects.detections)
    captions = {one: Caption("A dog.", embedding=unit(1)), two: Caption(error="no")}
    write_region_captions(sample, "objects", captions, model="m", space=SPACE)
    images.reload()
    first, second = images.first().objects.detections
    assert first.region_embedding @ unit(1) > 0.999
    assert first.region_embedding_model == "patchioner:/models/a:b"
    assert first.region_embedding_revision == "0123abcd"
    assert not second.has_field("region_embedding")
    # Words of another captioner leave the looks as they are.
    write_region_captions(sample, "objects", {one: Caption("A cat.")}, model="n")
    assert images.first().objects.detections[0].region_embedding is not None
