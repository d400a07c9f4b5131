"""Configuration of a URECA checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import InternVLVisionConfig, LlamaConfig, Qwen2Config

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import build_config, config_errors, read_json

INTERNLM2 = "InternLM2ForCausalLM"
QWEN2 = "Qwen2ForCausalLM"
FAMILIES = {INTERNLM2: "internlm2", QWEN2: "qwen2"}
"""Short names of the language models that InternVL2.5 is built on."""

UNREACHABLE = (
    "URECA's published weights (SammyLim/URECA on the hub) have not been reachable "
    "since September 2025, so a folder with a checkpoint is the normal way; "
    "docs/ureca.md lists its files"
)
"""Advice for users without weights."""


@dataclass(frozen=True)
class UrecaConfig:
    """Everything about a checkpoint except its weights and its tokenizer.

    Attributes:
        family: ``"internlm2"`` or ``"qwen2"``.
        vision: Configuration of the InternViT.
        llm: Configuration of the language model; Llama's config for InternLM2, which it
            equals once its fused projection is split.
        tile: Side of a tile in pixels.
        downsample: Factor by which pixel shuffle reduces each side of the patch grid.
        mask_channels: Number of tokens that represent the mask of one tile.
        dynamic_mask: Whether masks are cut into tiles as the image is, with values 0 to
            255; otherwise they are one tile with values 0 and 1. A checkpoint only
            works in the way that it was trained in.
        thumbnail: Whether an image of several tiles is followed by a thumbnail of the
            whole image as one more tile.
        lora_scale: Factor of the products of LoRA matrices, where the file has any.
    """

    family: str
    vision: InternVLVisionConfig
    llm: LlamaConfig | Qwen2Config
    tile: int
    downsample: float
    mask_channels: int | None
    dynamic_mask: bool
    thumbnail: bool
    lora_scale: float = 2.0

    @property
    def tokens_per_tile(self) -> int:
        """Returns the number of tokens that represent the image of a tile."""
        return int((self.tile // self.vision.patch_size[0]) ** 2 * self.downsample**2)

    @property
    def mask_map(self) -> int:
        """Side of the mask encoder's feature maps."""
        side = self.tile
        for _ in range(2):  # two convolutions of stride 2
            side = (side - 1) // 2 + 1
        return side

    @property
    def context(self) -> int:
        """Length of the context in tokens."""
        return int(self.llm.max_position_embeddings)

    @classmethod
    def read(cls, folder: Path) -> UrecaConfig:
        """Reads ``config.json``.

        Raises:
            WeightsError: When it is absent or unreadable, or asks for something that
                this implementation does not do.
        """
        path = folder / "config.json"
        with config_errors(str(path)):
            return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> UrecaConfig:
        root = read_json(path, UNREACHABLE)
        for part in ("vision_config", "llm_config"):
            if not isinstance(root.get(part), Mapping):
                raise WeightsError(
                    f"{path} has no {part}: this is no InternVL checkpoint. "
                    + UNREACHABLE
                )
        for key, wanted in (
            ("select_layer", -1),
            ("ps_version", "v2"),
            ("template", "mug-cap"),
        ):
            if root.get(key, wanted) != wanted:
                raise WeightsError(
                    f"{path}: {key} is {root[key]!r}; URECA's is {wanted!r}"
                )
        vision = _vision(root["vision_config"], f"{path}: vision_config")
        tile = int(root.get("force_image_size") or vision.image_size[0])
        if tile != vision.image_size[0]:
            raise WeightsError(
                f"{path}: force_image_size is {tile}, the vision tower's image_size "
                f"{vision.image_size[0]}; they must agree"
            )
        family, llm = _llm(root["llm_config"], f"{path}: llm_config")
        channels = root.get("num_mask_token")
        return cls(
            family=family,
            vision=vision,
            llm=llm,
            tile=tile,
            downsample=float(root.get("downsample_ratio", 0.5)),
            mask_channels=None if channels is None else int(channels),
            dynamic_mask=bool(root.get("dynamic_mask_size", True)),
            thumbnail=bool(root.get("use_thumbnail", True)),
        )


def _vision(config: Mapping[str, Any], where: str) -> InternVLVisionConfig:
    if config.get("norm_type", "layer_norm") != "layer_norm":
        raise WeightsError(f"{where}: norm_type must be 'layer_norm'")
    if config.get("qk_normalization"):
        raise WeightsError(f"{where}: qk_normalization must be false")
    values = {
        key: config[key]
        for key in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "image_size",
            "patch_size",
        )
    }
    return build_config(
        InternVLVisionConfig,
        {
            **values,
            "attention_bias": bool(config.get("qkv_bias", True)),
            "hidden_act": str(config.get("hidden_act", "gelu")),
            "layer_norm_eps": float(config.get("layer_norm_eps", 1e-6)),
            "norm_type": "layer_norm",
            "use_qk_norm": False,
        },
        where,
    )


def _llm(
    config: Mapping[str, Any], where: str
) -> tuple[str, LlamaConfig | Qwen2Config]:
    named = config.get("architectures") or [None]
    family = FAMILIES.get(named[0])
    if family is None:
        raise WeightsError(
            f"{where}: the language model is {named[0]!r}; URECA is built on "
            + " or ".join(FAMILIES)
        )
    if config.get("use_sliding_window"):
        raise WeightsError(f"{where}: use_sliding_window must be false")
    if config.get("tie_word_embeddings"):
        raise WeightsError(f"{where}: tie_word_embeddings must be false")
    heads = config["num_attention_heads"]
    values = {
        key: config[key]
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "rms_norm_eps",
        )
    }
    values |= {
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or int(config["hidden_size"]) // int(heads),
        "hidden_act": str(config.get("hidden_act", "silu")),
        "rope_parameters": _rope(config),
        "tie_word_embeddings": False,
    }
    if family == "qwen2":
        return family, build_config(Qwen2Config, values, where)
    values["attention_bias"] = bool(config.get("bias"))
    return family, build_config(LlamaConfig, values, where)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rotary position settings under the names of transformers 5."""
    rope = dict(config.get("rope_scaling") or {})
    kind = rope.pop("type", None) or rope.pop("rope_type", None) or "default"
    return {"rope_type": kind, "rope_theta": float(config["rope_theta"]), **rope}
