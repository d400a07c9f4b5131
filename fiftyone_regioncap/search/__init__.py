"""Finds captions by their words and by their meaning."""

from fiftyone_regioncap.search.index import CaptionIndex, Hit, Mode
from fiftyone_regioncap.search.query import Query, QueryError
from fiftyone_regioncap.search.results import SearchResults, search
from fiftyone_regioncap.search.source import CaptionSource

__all__ = [
    "CaptionIndex",
    "CaptionSource",
    "Hit",
    "Mode",
    "Query",
    "QueryError",
    "SearchResults",
    "search",
]
