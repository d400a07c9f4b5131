"""Finds captions by their words and by their meaning."""

from fiftyone_regioncap.search.index import CaptionIndex, Hit, Mode
from fiftyone_regioncap.search.query import Query, QueryError
from fiftyone_regioncap.search.results import SearchResults, search

__all__ = [
    "CaptionIndex",
    "Hit",
    "Mode",
    "Query",
    "QueryError",
    "SearchResults",
    "search",
]
