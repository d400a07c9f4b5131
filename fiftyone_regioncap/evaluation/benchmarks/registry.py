"""Registry of the benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fiftyone_regioncap.core.registry import LazyRegistry

if TYPE_CHECKING:
    from fiftyone_regioncap.evaluation.benchmarks.base import Benchmark

_HERE = "fiftyone_regioncap.evaluation.benchmarks"

ENTRIES = {
    "dlc-bench": f"{_HERE}.dlc_bench:DLC_BENCH",
    "videorefer-bench-d": f"{_HERE}.videorefer:DESCRIPTION",
    "videorefer-bench-q": f"{_HERE}.videorefer:QUESTIONS",
    "hc-stvg": f"{_HERE}.hc_stvg:HC_STVG",
    "plm-rcap": f"{_HERE}.plm_videobench:RCAP",
    "plm-rdcap": f"{_HERE}.plm_videobench:RDCAP",
    "plm-rtloc": f"{_HERE}.plm_videobench:RTLOC",
    "refcocog": f"{_HERE}.refcocog:REFCOCOG",
    "vg-regions": f"{_HERE}.visual_genome:VG_REGIONS",
    "vg-dense": f"{_HERE}.visual_genome:VG_DENSE",
    "ref-l4": f"{_HERE}.ref_l4:REF_L4",
    "flickr30k-entities": f"{_HERE}.flickr30k_entities:FLICKR30K_ENTITIES",
    "lvis-keywords": f"{_HERE}.keywords:LVIS",
    "paco-keywords": f"{_HERE}.keywords:PACO",
    "ovad": f"{_HERE}.ovad:OVAD",
    "coco-recognition": f"{_HERE}.coco_recognition:COCO_RECOGNITION",
    "patchioner-trace": f"{_HERE}.patchioner:TRACE",
    "patchioner-dense": f"{_HERE}.patchioner:DENSE",
    "patchioner-region-set": f"{_HERE}.patchioner:REGION_SET",
    "patchioner-image": f"{_HERE}.patchioner:IMAGE",
    "davis": f"{_HERE}.segmentation:DAVIS",
    "mose": f"{_HERE}.segmentation:MOSE",
    "sa-v": f"{_HERE}.segmentation:SA_V",
    "youtube-vis": f"{_HERE}.segmentation:YOUTUBE_VIS",
    "ureca": f"{_HERE}.ureca:URECA",
}
"""``"module:attribute"`` by name, in the order of the docs."""

BENCHMARKS: LazyRegistry[Benchmark] = LazyRegistry(
    kind="benchmark", entries=ENTRIES, group="fiftyone_regioncap.benchmarks"
)
