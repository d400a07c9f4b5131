"""Options and cards of the captioners that have no model of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard

RegionView = Literal["alpha", "outline", "crop", "views"]


@dataclass(frozen=True)
class OpenAIOptions(Options):
    """Options of captions from an OpenAI-compatible endpoint."""

    base_url: str | None = option(
        None, "Address of the endpoint; empty for OPENAI_BASE_URL, else OpenAI's own."
    )
    model: str | None = option(
        None, "Name of the model at the endpoint; a DAM server needs none."
    )
    api_key: str | None = option(
        None, "Key of the endpoint; empty for OPENAI_API_KEY.", secret=True
    )
    region: RegionView | None = option(
        None,
        "How the region is shown; empty for alpha with DAM, else outline.",
        choices={
            "alpha": "mask as the alpha channel",
            "outline": "outlined in red",
            "crop": "cut out with some context",
            "views": "cut out several times with more and more context",
        },
    )
    frames: int = option(1, "Number of frames of a clip that are shown.", minimum=1)
    concurrency: int = option(
        8, "Number of requests that are made at once.", minimum=1, advanced=True
    )
    timeout: float = option(
        120.0,
        "Time to wait for a connection, and for the next byte of an answer.",
        unit="seconds",
        minimum=0.001,
        advanced=True,
    )
    retries: int = option(
        4, "How often a request that may pass is sent again.", minimum=0, advanced=True
    )
    max_tokens: int = option(
        512, "Greatest length of a caption.", unit="tokens", minimum=1
    )
    temperature: float = option(
        0.0, "Randomness of sampling; 0 takes the most likely words.", minimum=0
    )
    confidence: bool = option(
        False, "Ask for token probabilities, which not all endpoints know."
    )


MEASURED = ModelCard(
    name="measured",
    summary="color, size, place and path as measured; no AI model",
    model="fiftyone_regioncap.captioning.measured:MeasuredCaptioner",
    license="Apache-2.0",
    commercial=True,
)

OPENAI = ModelCard(
    name="openai",
    summary="a DAM server or any vision model behind an OpenAI endpoint",
    model="fiftyone_regioncap.captioning.openai:OpenAICaptioner",
    license="the endpoint's",
    commercial=True,
    variables=("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    options=OpenAIOptions,
)
