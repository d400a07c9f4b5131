"""Propagation with MobileSAM, which runs on a laptop's CPU."""

from fiftyone_regioncap.propagation.mobilesam.propagator import MobileSamPropagator
from fiftyone_regioncap.propagation.mobilesam.segmenter import MobileSam
from fiftyone_regioncap.propagation.mobilesam.tracker import Settings

__all__ = ["MobileSam", "MobileSamPropagator", "Settings"]
