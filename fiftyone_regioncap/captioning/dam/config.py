"""Configuration of a DAM checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import (
    build_config,
    check_sizes,
    config_errors,
    read_json,
)

LLM = "llm"
VISION = "vision_tower"
PROJECTOR = "mm_projector"
ADAPTERS = "context_provider"
PARTS = {
    LLM: "llm_cfg",
    VISION: "vision_tower_cfg",
    PROJECTOR: "mm_projector_cfg",
    ADAPTERS: "context_provider_cfg",
}
"""Sub-folder of each part, and the key of the root config that announces it."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes shared by the vision tower and its adapters.

    Attributes:
        hidden_size: Number of channels of the tokens.
        intermediate_size: Number of hidden units of the MLPs.
        layers: Number of layers in the checkpoint.
        heads: Number of attention heads.
        eps: Epsilon of the layer norms.
        activation: Activation function of the MLPs, by its name in transformers.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    eps: float
    activation: str


@dataclass(frozen=True)
class AdapterConfig:
    """Gated cross-attention from the crop to the full view (arXiv 2504.16072, sec. 3).

    Attributes:
        gated: Whether each adapter has learned gates; they are 1 otherwise.
        always: Whether adapters also run where crop and full view are the same.
        masked: Whether attention is restricted to full-view patches that touch the
            mask.
        swapped: Whether the full view gives the queries and the crop the keys and
            values.
    """

    gated: bool = True
    always: bool = False
    masked: bool = False
    swapped: bool = False


@dataclass(frozen=True)
class ImageConfig:
    """Image preprocessing.

    Attributes:
        size: Side of both views in pixels.
        resample: Pillow's number of the resampling filter.
        scale: Factor that 8-bit values are multiplied with.
        mean: Mean of each RGB channel, subtracted after scaling.
        std: Standard deviation of each RGB channel, divided by after that.
        pad: Whether views are padded to squares instead of stretched.
    """

    size: int
    resample: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: bool


@dataclass(frozen=True)
class DAMConfig:
    """Everything about a checkpoint except its weights.

    Attributes:
        image: Image preprocessing.
        vision: Sizes of the SigLIP tower.
        patch_size: Side of a patch in pixels.
        used_layers: Number of tower layers (and adapters) that run: the selected hidden
            state is the one after them, and later layers have no effect.
        adapters: Cross-attention between the views.
        llm: Configuration of the language model.
        context: Maximum number of tokens of prompt and answer together.
    """

    image: ImageConfig
    vision: EncoderConfig
    patch_size: int
    used_layers: int
    adapters: AdapterConfig
    llm: LlamaConfig
    context: int

    @property
    def grid(self) -> int:
        """Returns the number of patches along a side of a view."""
        return self.image.size // self.patch_size

    @property
    def tokens_per_image(self) -> int:
        """Returns the number of tokens that represent one image in the prompt."""
        return ((self.grid + 1) // 2) ** 2

    @classmethod
    def read(cls, folder: Path) -> DAMConfig:
        """Reads the JSON files of a checkpoint folder.

        Args:
            folder: Checkpoint folder with ``config.json`` and one sub-folder per part.

        Raises:
            WeightsError: When a file is absent or unreadable, or asks for something
                that this implementation does not do.
        """
        with config_errors(f"{folder}/config.json"):
            return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> DAMConfig:
        root = read_json(folder / "config.json")
        for part, key in PARTS.items():
            if not isinstance(root.get(key), Mapping):
                raise WeightsError(
                    f"{folder}/config.json has no {key}: this is not a DAM checkpoint; "
                    "name the folder that holds "
                    + ", ".join(f"{name}/" for name in PARTS)
                )
            if not (folder / part / "config.json").is_file():
                raise WeightsError(
                    f"{folder / part}/config.json is missing; fetch the checkpoint anew"
                )
        if root.get("mask_encoder_cfg"):
            raise WeightsError(
                f"{folder}/config.json asks for a mask encoder, which no published DAM "
                "checkpoint has; set mask_encoder_cfg to null"
            )
        tower = read_json(folder / VISION / "config.json")
        vision = _encoder(tower, folder / VISION)
        projector = read_json(folder / PROJECTOR / "config.json").get(
            "mm_projector_type"
        )
        if projector != "mlp_downsample":
            raise WeightsError(
                f"{folder / PROJECTOR}: projector type {projector!r} is not supported; "
                "DAM's is 'mlp_downsample'"
            )
        path = folder / LLM / "config.json"
        llm = build_config(LlamaConfig, read_json(path), str(path))
        # VILA writes the length its tokenizer cuts at; a plain Llama config has none.
        context = getattr(llm, "tokenizer_model_max_length", None)
        return cls(
            image=_image(folder, root.get("image_aspect_ratio")),
            vision=vision,
            patch_size=int(tower["patch_size"]),
            used_layers=_used_layers(root, vision.layers, folder),
            adapters=_adapters(folder, vision),
            llm=llm,
            context=int(context or llm.max_position_embeddings),
        )


def _encoder(config: Mapping[str, Any], folder: Path) -> EncoderConfig:
    check_sizes(config, f"{folder}/config.json")
    with config_errors(f"{folder}/config.json"):
        return EncoderConfig(
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            eps=float(config.get("layer_norm_eps", 1e-6)),
            activation=str(config.get("hidden_act", "gelu_pytorch_tanh")),
        )


def _used_layers(root: Mapping[str, Any], layers: int, folder: Path) -> int:
    if root.get("mm_vision_select_feature", "cls_patch") != "cls_patch":
        raise WeightsError(
            f"{folder}/config.json: mm_vision_select_feature must be 'cls_patch'; "
            "SigLIP has no class token to drop"
        )
    # The list of hidden states begins with the embeddings: layers + 1 entries.
    selected = int(root.get("mm_vision_select_layer", -2))
    used = selected if selected >= 0 else layers + 1 + selected
    if not 0 <= used <= layers:
        raise WeightsError(
            f"{folder}/config.json: mm_vision_select_layer {selected} does not exist "
            f"in a tower of {layers} layers"
        )
    return used


def _adapters(folder: Path, vision: EncoderConfig) -> AdapterConfig:
    config = read_json(folder / ADAPTERS / "config.json")
    where = f"{folder / ADAPTERS}/config.json"
    kind = config.get("context_provider_type")
    if kind != "cross_attn_end_to_all":
        raise WeightsError(
            f"{where}: context_provider_type {kind!r} is not supported; "
            "DAM's is 'cross_attn_end_to_all'"
        )
    if config.get("context_provider_layer_indices") is not None:
        raise WeightsError(
            f"{where}: context_provider_layer_indices must be null; with any list the "
            "authors' code drops every adapter, so such a checkpoint has no meaning"
        )
    sizes = _encoder(config, folder / ADAPTERS)
    if sizes != vision:
        raise WeightsError(
            f"{where}: the adapters are {sizes}, the tower {vision}; they must agree"
        )
    return AdapterConfig(
        gated=bool(config.get("zero_init_output", True)),
        always=bool(config.get("treat_image_as_cimage", False)),
        masked=bool(config.get("masked_cross_attn", False)),
        swapped=bool(config.get("context_image_as_queries", False)),
    )


def _image(folder: Path, aspect: object) -> ImageConfig:
    path = folder / VISION / "preprocessor_config.json"
    config = read_json(path)
    size = config.get("size", {})
    height, width = size.get("height"), size.get("width")
    if not height or height != width:
        raise WeightsError(f"{path}: size must be a square, not {size}")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise WeightsError(f"{path}: {step} must be true")
    mean, std = config["image_mean"], config["image_std"]
    return ImageConfig(
        size=int(height),
        resample=int(config.get("resample", 3)),
        scale=float(config.get("rescale_factor", 1 / 255)),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        pad=aspect == "pad",
    )
