from __future__ import annotations

from collections.abc import Iterator

import fiftyone as fo
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.analysis.facets import extract_facets, facets_of, singular
from fiftyone_regioncap.analysis.vocabulary import NOUNS
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions


@pytest.mark.parametrize(
    ("caption", "nouns", "traits", "subject", "colors"),
    [
        (
            "A red car turning left at two traffic lights.",
            ("car", "traffic light"),
            ("color:red",),
            "car",
            ("red",),
        ),
        (
            "The old man with grey hair wears a striped shirt",
            ("man", "hair", "shirt"),
            ("age:old", "color:gray", "pattern:striped"),
            "man",
            (),
        ),
        (
            "A shiny gizmo on wheels.",
            ("gizmo", "wheel"),
            ("texture:shiny",),
            "gizmo",
            (),
        ),
        (
            "A gray and blue gizmo, about 5% of the frame",
            ("gizmo", "frame"),
            ("color:gray", "color:blue"),
            "gizmo",
            ("gray", "blue"),
        ),
        ("An orange on a plate", ("orange", "plate"), (), "orange", ()),
        ("An orange boat", ("boat",), ("color:orange",), "boat", ("orange",)),
        ("", (), (), None, ()),
        ("مرحبا <b>{{x}}</b> 🚗", (), (), None, ()),
    ],
)
def test_what_captions_speak_of(caption, nouns, traits, subject, colors):
    found = facets_of(caption)
    assert found.nouns == nouns
    assert found.traits == traits
    assert (found.subject_noun, found.subject_colors) == (subject, colors)


@pytest.mark.parametrize(
    ("label", "noun"),
    [("traffic_cone", "cone"), ("Forklift", "forklift"), ("", None), ("red", None)],
)
def test_the_label_is_a_noun_too(label, noun):
    assert facets_of("It moves.", label).nouns == ((noun,) if noun else ())


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("cars", "car"),
        ("buses", "bus"),
        ("bus", "bus"),
        ("glass", "glass"),
        ("women", "woman"),
        ("horses", "horse"),
        ("puppies", "puppy"),
        ("gadgets", "gadget"),
        ("foxes", "fox"),
    ],
)
def test_singulars(plural, one):
    assert singular(plural) == one


@pytest.mark.parametrize("noun", sorted(NOUNS))
def test_nouns_are_their_own_singular(noun):
    assert singular(noun) == noun


@given(st.text())
def test_any_text_has_facets(text):
    found = facets_of(text, text)
    assert all(":" in trait for trait in found.traits)


@pytest.fixture
def dataset(fiftyone_database: str) -> Iterator[fo.Dataset]:
    dataset = fo.Dataset()
    texts = [["A red car.", "Two blue buses."], ["A red dog runs."]]
    for number, captions in enumerate(texts):
        sample = fo.Sample(filepath=f"/nowhere/{number}.mp4")
        dataset.add_sample(sample)
        records = [
            CaptionRecord(
                index,
                (0, 199 if index else 9),
                label="thing",
                caption=text,
                confidence=0.9 if index else 0.3,
                error="no mask" if "bus" in text else None,
            )
            for index, text in enumerate(captions)
        ]
        write_captions(sample, "captions", records)
    yield dataset
    dataset.delete()


def test_samples_can_be_filtered_by_what_is_spoken_of(dataset):
    summary = extract_facets(dataset)
    assert (summary.captions, summary.nouns, summary.traits) == (3, 4, 2)
    first, second = dataset.values("captions_nouns")
    assert set(first) == {"car", "bus", "thing"} and set(second) == {"dog", "thing"}
    assert set(dataset.first().captions_traits) == {"color:red", "color:blue"}
    assert "captions_nouns" in dataset.list_indexes()
    groups = {g.name: g.paths for g in dataset.app_config.sidebar_groups}
    assert set(groups["captions facets"]) == set(summary.fields)


def test_views_of_captions_to_look_at_are_saved(dataset):
    names = set(extract_facets(dataset).views)
    assert names == {
        f"captions: {title}"
        for title in ("unreviewed", "failed", "low confidence", "long tracks")
    }
    sizes = {
        name: dataset.load_saved_view(name).count("captions.detections")
        for name in names
    }
    assert sizes == {
        "captions: unreviewed": 3,
        "captions: failed": 1,
        "captions: low confidence": 2,
        "captions: long tracks": 1,
    }


def test_there_is_no_view_of_nothing(dataset):
    extract_facets(dataset)
    labels = dataset.values("captions.detections.id", unwind=True)
    reviews = dict.fromkeys(labels, "accepted")
    dataset.set_label_values("captions.detections.review", reviews)
    assert "captions: unreviewed" not in extract_facets(dataset).views
    assert not dataset.has_saved_view("captions: unreviewed")


def test_doing_it_again_follows_the_captions(dataset):
    extract_facets(dataset)
    sample = dataset.last()
    write_captions(sample, "captions", [CaptionRecord(0, (0, 9), caption="A tree.")])
    summary = extract_facets(dataset)
    assert dataset.values("captions_nouns")[1] == ["tree"]
    assert len(dataset.list_saved_views()) == len(summary.views)
