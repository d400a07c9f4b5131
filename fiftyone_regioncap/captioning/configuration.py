"""Options that captioners share, and cards of those without a model of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard

if TYPE_CHECKING:
    from fiftyone_regioncap.models.sampling import Sampling

RegionView = Literal["alpha", "outline", "crop", "views"]


@dataclass(frozen=True)
class GenerationOptions(Options):
    """Options of captioners that write with a language model of their own."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "Number format; empty for bfloat16 on a GPU, else float32.", advanced=True
    )
    max_new_tokens: int = option(
        512, "Greatest length of a caption.", unit="tokens", minimum=1
    )
    temperature: float = option(
        0.0, "Randomness of sampling; 0 takes the most likely words.", minimum=0
    )
    top_p: float = option(
        1.0, "Share of probability that words are drawn from.", minimum=1e-6, maximum=1
    )
    top_k: int = option(
        50, "Number of words that are drawn from; 0 for all.", minimum=0
    )
    seed: int = option(0, "Seed of sampling.", minimum=0, advanced=True)

    @property
    def sampling(self) -> Sampling:
        """Returns how tokens are sampled."""
        from fiftyone_regioncap.models.sampling import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)


@dataclass(frozen=True)
class LoraOptions(Options):
    """Options of low-rank adapters on a language model (LoRA, arXiv 2106.09685)."""

    rank: int = option(
        16, "Rank of the LoRA matrices on the language model.", minimum=1
    )
    alpha: int | None = option(
        None,
        "Scale of LoRA, which is divided by the rank; empty for twice the rank.",
        minimum=1,
        advanced=True,
    )
    dropout: float = option(
        0.05, "Dropout before the LoRA matrices.", minimum=0, maximum=1, advanced=True
    )


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
        None,
        "Key of the endpoint; empty for OPENAI_API_KEY, which only goes to the host of "
        "OPENAI_BASE_URL, else to OpenAI.",
        secret=True,
    )
    insecure: bool = option(
        False,
        "Send the key unencrypted (http) to another machine.",
        advanced=True,
        result=False,
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
        8,
        "Number of requests that are made at once.",
        minimum=1,
        advanced=True,
        result=False,
    )
    timeout: float = option(
        120.0,
        "Time to wait for a connection, and for the next byte of an answer.",
        unit="seconds",
        minimum=0.001,
        advanced=True,
        result=False,
    )
    retries: int = option(
        4,
        "How often a request that may pass is sent again.",
        minimum=0,
        advanced=True,
        result=False,
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
