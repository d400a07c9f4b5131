"""Finds captions that are probably bad, and says why."""

from fiftyone_regioncap.analysis.checks.run import CheckSummary, check_captions
from fiftyone_regioncap.analysis.checks.triage import TriageSummary, triage

__all__ = ["CheckSummary", "TriageSummary", "check_captions", "triage"]
