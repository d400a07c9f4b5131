"""The options of searching and mapping captions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.search.query import Query

MODEL = (
    "Folder or hub id of a sentence-transformers model, or, for the looks of regions, "
    "of the captioner that embedded them; empty for the default."
)


@dataclass(frozen=True)
class SearchOptions(Options):
    """Options of the search of captions."""

    query: str = option(
        help='Words, "phrases in quotes", and -words that must not be there.'
    )
    captions: str = option(
        "captions", "Field of captions, or of regions with captions.", picker="captions"
    )
    k: int = option(25, "Greatest number of results.", minimum=1, label="Results")
    mode: Literal["auto", "hybrid", "text", "semantic", "visual"] = option(
        "auto",
        "What captions are compared by.",
        choices={
            "auto": "words and meaning, as far as the machine can",
            "hybrid": "words and meaning",
            "text": "words",
            "semantic": "meaning",
            "visual": "looks of the regions",
        },
    )
    alone: bool = option(
        True, "Hide objects that were not found, in the view of the results."
    )
    score_field: str | None = option(
        "search_score",
        "Attribute of the captions that scores are written to; empty for none.",
        advanced=True,
    )
    save: str | None = option(
        None,
        "Name of a view to save the results as; empty for none.",
        advanced=True,
    )
    model: str | None = option(None, MODEL, advanced=True)
    device: str | None = option(
        None,
        "Device that embeds texts, such as cuda; empty for the best.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Validates the query and the name of the view too.

        Raises:
            OptionError: When a value doesn't fit.
            QueryError: When the query looks for nothing.
        """
        super().__post_init__()
        if self.mode != "visual":
            Query.parse(self.query)
        # FiftyOne makes a part of an address of it.
        if self.save is not None and not re.search("[A-Za-z0-9]", self.save):
            raise OptionError(f"save={self.save!r}: give letters or digits as a name")


@dataclass(frozen=True)
class EmbedCaptionsOptions(Options):
    """Options of the map of captions."""

    captions: str = option(
        "captions", "Field of captions, or of regions with captions.", picker="captions"
    )
    space: Literal["text", "visual"] = option(
        "text",
        "What makes captions alike.",
        choices={"text": "what captions say", "visual": "how regions look"},
    )
    layout: Literal["umap", "pca"] = option(
        "umap",
        "How points are laid out.",
        choices={
            "umap": "keeps neighbors together",
            "pca": "fast, keeps the main axes",
        },
    )
    key: str | None = option(
        None, "Key of the brain run; empty for <field>_map.", advanced=True
    )
    clusters: int | None = option(
        None, "Number of groups; empty for one that grows with the captions.", minimum=1
    )
    duplicate: float = option(
        0.95,
        "Cosine similarity from which captions say nearly the same.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    model: str | None = option(None, MODEL, advanced=True)
    device: str | None = option(
        None,
        "Device that embeds texts, such as cuda; empty for the best.",
        advanced=True,
    )
