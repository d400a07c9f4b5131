"""The captioners by name."""

from __future__ import annotations

import os
from collections.abc import Callable

from fiftyone_regioncap.captioning.base import Captioner, TextEncoder
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.registry import (
    Backend,
    LoadOptions,
    Registry,
    checked_path,
    in_hub_cache,
)

DAM = "nvidia/DAM-3B"
DAM_VIDEO = "nvidia/DAM-3B-Video"
PATCHIONER = "Ruggero1912/Patch-ioner_talk2dino_decap_COCO_Captions"


def _measured(load: LoadOptions) -> Captioner:
    from fiftyone_regioncap.captioning.measured import MeasuredCaptioner

    return MeasuredCaptioner(**load.options)


def _dam(load: LoadOptions) -> Captioner:
    from fiftyone_regioncap.captioning.dam import DamCaptioner

    return DamCaptioner.from_pretrained(
        checked_path(load.weights or DAM), device=load.device, **load.options
    )


def _dam_video(load: LoadOptions) -> Captioner:
    from fiftyone_regioncap.captioning.dam import DamCaptioner

    return DamCaptioner.from_pretrained(
        checked_path(load.weights or DAM_VIDEO),
        device=load.device,
        video=True,
        **load.options,
    )


def _openai(load: LoadOptions) -> Captioner:
    from fiftyone_regioncap.captioning.openai import OpenAICaptioner

    # Its weights are wherever the endpoint is.
    return OpenAICaptioner(**{"base_url": load.weights, **load.options})


def _patchioner(load: LoadOptions) -> Captioner:
    from fiftyone_regioncap.captioning.patchioner import PatchionerCaptioner

    return PatchionerCaptioner.from_pretrained(
        checked_path(load.weights or PATCHIONER), device=load.device, **load.options
    )


def _patchioner_texts(load: LoadOptions) -> TextEncoder:
    from fiftyone_regioncap.captioning.patchioner import PatchionerTexts

    source = checked_path(load.weights or PATCHIONER)
    return PatchionerTexts.from_pretrained(source, load.device)


_TEXT_ENCODERS: dict[str, Callable[[LoadOptions], TextEncoder]] = {
    "patchioner": _patchioner_texts,
}


def text_encoder(name: str, load: LoadOptions) -> TextEncoder:
    """The text side of a captioner whose captions come with region embeddings.

    Args:
        name: of the captioner.
        load: the same weights as the captioner's.

    Raises:
        BackendError: when the captioner has none.
        WeightsError: when the weights are not to be had.
    """
    if name not in _TEXT_ENCODERS:
        raise BackendError(
            f"the captioner {name!r} has no text encoder; "
            f"{', '.join(_TEXT_ENCODERS)} does"
        )
    return _TEXT_ENCODERS[name](load)


def _dynrefer(load: LoadOptions) -> Captioner:
    from fiftyone_regioncap.captioning.dynrefer import DynReferCaptioner

    return DynReferCaptioner.from_pretrained(
        _folder("dynrefer", load), device=load.device, **load.options
    )


def _ureca(load: LoadOptions) -> Captioner:
    from fiftyone_regioncap.captioning.ureca import UrecaCaptioner

    return UrecaCaptioner.from_pretrained(
        _folder("ureca", load), device=load.device, **load.options
    )


def _folder(name: str, load: LoadOptions) -> str:
    if load.weights is None:
        raise BackendError(
            f"{name} needs weights: a folder as docs/captioners.md describes it"
        )
    return checked_path(load.weights)


def _not_cached(repository: str, file: str) -> str | None:
    if in_hub_cache(repository, file):
        return None
    return f"weights {repository} are not downloaded; name them with weights="


def _openai_missing() -> str | None:
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        return None
    return "name an endpoint with weights=http://..., or set OPENAI_BASE_URL"


CAPTIONERS: Registry[Captioner] = Registry(
    kind="captioner",
    backends={
        backend.name: backend
        for backend in (
            Backend(
                name="measured",
                summary="color, size, place and path as measured; no model",
                weights=None,
                license="Apache-2.0",
                commercial=True,
                load=_measured,
                missing=lambda: None,
            ),
            Backend(
                name="dam-video",
                summary="Describe Anything over 8 frames of a track",
                weights=DAM_VIDEO,
                license="NVIDIA non-commercial",
                commercial=False,
                load=_dam_video,
                missing=lambda: _not_cached(DAM_VIDEO, "config.json"),
            ),
            Backend(
                name="dam",
                summary="Describe Anything on a single image",
                weights=DAM,
                license="NVIDIA non-commercial",
                commercial=False,
                load=_dam,
                missing=lambda: _not_cached(DAM, "config.json"),
            ),
            Backend(
                name="openai",
                summary="a DAM server or any vision model behind an OpenAI endpoint",
                weights=None,
                license="the endpoint's",
                commercial=True,
                load=_openai,
                missing=_openai_missing,
            ),
            Backend(
                name="patchioner",
                summary="Patch-ioner: every region of a frame from one backbone pass",
                weights=PATCHIONER,
                license="not stated by its authors",
                commercial=False,
                load=_patchioner,
                missing=lambda: _not_cached(PATCHIONER, "config.yaml"),
            ),
            Backend(
                name="dynrefer",
                summary="DynRefer: captions, tags, attributes and categories",
                weights=None,
                license="not stated by its authors",
                commercial=False,
                load=_dynrefer,
                missing=lambda: "name a folder with weights=",
            ),
            Backend(
                name="ureca",
                summary="URECA: captions that fit no other region",
                weights=None,
                license="not stated by its authors",
                commercial=False,
                load=_ureca,
                missing=lambda: "name a folder with weights=",
            ),
        )
    },
    preferred=("dam-video", "measured"),
)
