"""Nouns and attributes of captions, as short words to filter by.

Rules and the lists of :mod:`.vocabulary` find nouns, colors and other attributes;
nothing is downloaded. The sidebar filters by whole values, so that
long texts are of no use there, and these lists are.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco
from fiftyone import ViewField as F

from fiftyone_regioncap.analysis.options import FacetOptions
from fiftyone_regioncap.analysis.vocabulary import (
    ATTRIBUTES,
    COLORS,
    DETERMINERS,
    IRREGULAR_PLURALS,
    NOUNS,
    STOPWORDS,
)
from fiftyone_regioncap.core.markdown import code
from fiftyone_regioncap.core.progress import ProgressListener, tracked
from fiftyone_regioncap.dataset.caption_fields import CaptionField

NOUNS_FIELD = "nouns"
"""Attribute of the labels for the nouns."""

TRAITS_FIELD = "traits"
"""Attribute of the labels for colors and other attributes."""

LOW_CONFIDENCE = 0.5
LONG_TRACK_FRAMES = 150

_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|[.,;:!?()]")
_KINDS = {word: kind for kind, words in ATTRIBUTES.items() for word in words}


@dataclass(frozen=True)
class Facets:
    """Nouns and attributes of a caption.

    Attributes:
        nouns: Nouns in the singular, in the order of the text.
        traits: Attributes such as ``"color:red"`` and ``"material:wooden"``.
        subject_noun: The first noun of the text.
        subject_colors: Basic colors that the subject is said to have.
    """

    nouns: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    subject_noun: str | None = None
    subject_colors: tuple[str, ...] = ()


def facets_of(caption: str, label: str | None = None) -> Facets:
    """Finds nouns and attributes in an English caption.

    Args:
        caption: A sentence or more.
        label: The short name; its last word is taken as a noun.
    """
    words = [word.lower() for word in _WORD.findall(caption)]
    nouns: dict[str, None] = {}
    traits: dict[str, None] = {}
    subject: str | None = None
    colors: dict[str, None] = {}
    for place, word in enumerate(words):
        color = COLORS.get(word)
        if color is not None and not _names_fruit(words, place):
            traits[f"color:{color}"] = None
            if subject is None:
                colors[color] = None
        elif word in _KINDS:
            traits[f"{_KINDS[word]}:{word}"] = None
        noun = _noun_at(words, place)
        if noun is not None:
            nouns[noun] = None
            subject = subject or noun
    if label:
        names = [word.lower() for word in _WORD.findall(label.replace("_", " "))]
        if names and names[-1] not in COLORS and names[-1] not in STOPWORDS:
            nouns.setdefault(singular(names[-1]))
    return Facets(tuple(nouns), tuple(traits), subject, tuple(colors))


def singular(word: str) -> str:
    """Returns an English noun in the singular.

    Args:
        word: The noun in lower case.
    """
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word in NOUNS or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    for ending, replacement in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and word.removesuffix(ending) + replacement in NOUNS:
            return word.removesuffix(ending) + replacement
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1]


def _noun_at(words: list[str], place: int) -> str | None:
    """Returns the noun that ends at a word, if one does."""
    word = words[place]
    if place and (pair := f"{words[place - 1]} {singular(word)}") in NOUNS:
        return pair
    if word in COLORS and not _names_fruit(words, place):
        return None
    if singular(word) in NOUNS:
        return singular(word)
    # A word that isn't known is a noun where it stands alone between a determiner,
    # with attributes in between, and the end of the phrase: "a red and gray gizmo on".
    if not word.isalpha() or word in STOPWORDS or word in _KINDS or word in DETERMINERS:
        return None
    before = place - 1
    while before >= 0 and (
        words[before] in COLORS or words[before] in _KINDS or words[before] == "and"
    ):
        before -= 1
    if before < 0 or words[before] not in DETERMINERS:
        return None
    after = words[place + 1] if place + 1 < len(words) else "."
    ends = after in STOPWORDS or not after[0].isalpha() or after.endswith(("ing", "ed"))
    return singular(word) if ends else None


def _names_fruit(words: list[str], place: int) -> bool:
    """Returns whether "orange" is a thing here: after a determiner, before no noun."""
    if words[place] != "orange" or not place or words[place - 1] not in DETERMINERS:
        return False
    after = words[place + 1] if place + 1 < len(words) else "."
    return after in STOPWORDS or not after[0].isalpha()


# -- on a dataset -------------------------------------------------------------------


@dataclass(frozen=True)
class FacetSummary:
    """The facets that were written.

    Attributes:
        captions: Number of captions.
        nouns: Number of different nouns.
        traits: Number of different traits.
        fields: Fields of the samples to filter by in the sidebar.
        views: Names of the saved views.
    """

    captions: int
    nouns: int
    traits: int
    fields: tuple[str, ...]
    views: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Returns a few lines for people, as Markdown."""
        fields, views = (", ".join(map(code, n)) for n in (self.fields, self.views))
        return (
            f"{self.captions} captions speak of {self.nouns} nouns and {self.traits} "
            f"attributes; filter by {fields}, or open one of the views {views}"
        )


def extract_facets(
    samples: foco.SampleCollection,
    options: FacetOptions = FacetOptions(),  # noqa: B008
    *,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> FacetSummary:
    """Writes nouns and attributes of captions, and makes them easy to filter by.

    Labels get ``nouns`` and ``traits``; samples get ``<field>_nouns``,
    ``<field>_traits`` and ``<field>_labels``, which are indexed and shown in a group
    of the sidebar; views of captions to look at are saved (see :func:`save_views`).
    What was made before is brought up to date.

    Args:
        samples: A dataset or a view.
        options: The field of captions.
        listener: Called with progress events.
        cancel: Set it to stop before the next sample.

    Raises:
        FieldError: If the field is absent or can't have captions.
    """
    field = options.captions
    captions = CaptionField.of(samples, field)
    nouns: dict[str, list[str]] = {}
    traits: dict[str, list[str]] = {}
    read = captions.in_view(samples, ("caption", "label"))
    for _, labels in tracked(read, "read", field, len(samples), listener, cancel):
        for label in labels:
            found = facets_of(label.get("caption") or "", label.get("label"))
            nouns[str(label["_id"])] = list(found.nouns)
            traits[str(label["_id"])] = list(found.traits)
    captions.write(NOUNS_FIELD, nouns, fo.ListField, fo.StringField)
    captions.write(TRAITS_FIELD, traits, fo.ListField, fo.StringField)
    paths = {
        f"{field}_nouns": NOUNS_FIELD,
        f"{field}_traits": TRAITS_FIELD,
        f"{field}_labels": "label",
    }
    summaries = tuple(_summarize(captions, name, path) for name, path in paths.items())
    return FacetSummary(
        captions=len(nouns),
        nouns=len({word for words in nouns.values() for word in words}),
        traits=len({word for words in traits.values() for word in words}),
        fields=summaries,
        views=tuple(save_views(captions)),
    )


def save_views(captions: CaptionField) -> Iterator[str]:
    """Saves views of captions to look at, of which there are some.

    They are the captions that are unreviewed, that failed, that the model was unsure
    of, that are about long tracks, and that another caption is nearly the same as.

    Args:
        captions: The field.

    Yields:
        The names of the views.
    """
    filters = {
        "unreviewed": ("review", F("review") == "unreviewed"),
        "failed": ("error", F("error") != None),  # noqa: E711  (becomes a query)
        "low confidence": (
            "confidence",
            (F("confidence") != None) & (F("confidence") < LOW_CONFIDENCE),  # noqa: E711
        ),
        "long tracks": (
            "support",
            F("support")[1] - F("support")[0] >= LONG_TRACK_FRAMES,
        ),
        "duplicates": ("duplicate_of", F("duplicate_of") != None),  # noqa: E711
    }
    dataset = captions.dataset
    for title, (attribute, condition) in filters.items():
        if dataset.has_field(f"{captions.labels}.{attribute}"):
            name = f"{captions.name}: {title}"
            view = dataset.filter_labels(captions.name, condition)
            if len(view):
                dataset.save_view(name, view, overwrite=True)
                yield name
            elif dataset.has_saved_view(name):  # from captions as they were before
                dataset.delete_saved_view(name)


def _summarize(captions: CaptionField, name: str, attribute: str) -> str:
    """Returns a list of the values that a sample's labels have, for the sidebar."""
    dataset = captions.dataset
    if dataset.has_field(name):
        dataset.update_summary_field(name)
    else:
        dataset.create_summary_field(
            f"{captions.labels}.{attribute}",
            field_name=name,
            sidebar_group=f"{captions.name} facets",
            create_index=True,
        )
    return name
