"""Conversion of published weights to transformers' modules.

The names are those of InternVL's own code (``internvl_chat``); the modules are those of
transformers' port, with InternLM2 as the Llama that it is once its fused projection of
queries, keys and values is split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fiftyone_regioncap.captioning.ureca.config import UNREACHABLE, UrecaConfig
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import (
    NamedTensors,
    Renaming,
    read_tensors,
    rename,
)

FIRST_CONVOLUTION = "mask_encoder.0.weight"

_LORA = re.compile(r"(.+)\.(base_layer|lora_A\.\w+|lora_B\.\w+)\.weight$")

RENAMED: Renaming = (
    (r"^language_model\.base_model\.model\.", "language_model."),
    (r"\.base_layer\.", "."),
    (r"^vision_model\.embeddings\.class_embedding$", "vision.embeddings.cls_token"),
    (
        r"^vision_model\.embeddings\.position_embedding$",
        "vision.embeddings.position_embeddings",
    ),
    (
        r"^vision_model\.embeddings\.patch_embedding\.",
        "vision.embeddings.patch_embeddings.projection.",
    ),
    (r"^vision_model\.encoder\.layers\.", "vision.encoder.layer."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"^mlp1\.0\.", "projector.layer_norm."),
    (r"^mlp1\.1\.", "projector.linear_1."),
    (r"^mlp1\.3\.", "projector.linear_2."),
    (r"^language_model\.output\.", "language_model.lm_head."),
    (r"^language_model\.", "llm."),
    (r"\.tok_embeddings\.", ".embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)
"""From published names to ours, one after the other."""


def mask_channels(folder: Path) -> int:
    """Returns how many tokens the mask of a tile gets, as the weights have it.

    Raises:
        WeightsError: When they have no mask encoder, or cannot be read.
    """
    for _, kernel in read_tensors(folder, lambda name: name == FIRST_CONVOLUTION):
        return len(kernel)
    raise WeightsError(
        f"{folder} has no {FIRST_CONVOLUTION}: this is a plain InternVL without "
        f"URECA's mask encoder. {UNREACHABLE}"
    )


def convert(named: NamedTensors, config: UrecaConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields published tensors under our names: merged, renamed and split.

    Args:
        named: Pairs of published names and tensors.
        config: Configuration of the checkpoint.
    """
    for published, tensor in merge_lora(named, config.lora_scale):
        if published.endswith("rotary_emb.inv_freq"):
            continue
        name = rename(published, RENAMED)
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace(".attn.qkv.", f".attention.{part}_proj."), rows
        elif ".attention.wqkv." in name:
            parts = split_wqkv(tensor, config)
            for part, rows in zip("qkv", parts, strict=True):
                yield name.replace(".attention.wqkv.", f".self_attn.{part}_proj."), rows
        else:
            yield name, tensor


def split_wqkv(fused: Tensor, config: UrecaConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Splits InternLM2's fused projection.

    For each head of keys it holds the heads of queries that share it, then the keys'
    head, then the values'.

    Args:
        fused: Fused projection, (rows, H) or, of a bias, (rows,).
        config: Configuration of the checkpoint.

    Returns:
        The projections of queries, keys and values.

    Raises:
        WeightsError: When the rows are not those of so many heads.
    """
    heads = config.llm.num_key_value_heads
    group = config.llm.num_attention_heads // heads
    if len(fused) != heads * (group + 2) * config.llm.head_dim:
        raise WeightsError(
            f"a fused projection has {len(fused)} rows, but config.json's heads take "
            f"{heads * (group + 2) * config.llm.head_dim}; they are of two checkpoints"
        )
    parts = fused.unflatten(0, (heads, group + 2, config.llm.head_dim))
    query, key, value = parts.split([group, 1, 1], dim=1)
    return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)


def fuse_wqkv(parts: Sequence[Tensor], config: UrecaConfig) -> Tensor:
    """Joins projections of queries, keys and values; see :func:`split_wqkv`."""
    heads = config.llm.num_key_value_heads
    grouped = [part.unflatten(0, (heads, -1, config.llm.head_dim)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 2)


def publish(
    published: str, tensor: Tensor, ours: Mapping[str, Tensor], config: UrecaConfig
) -> Tensor:
    """Returns a published tensor's new value; the inverse of :func:`convert`.

    Args:
        published: Published name.
        tensor: Its value before; kept where the model has no place for it.
        ours: The model's tensors by our names.
        config: Configuration of the checkpoint.
    """
    name = rename(published, RENAMED)
    if ".attn.qkv." in name:
        stems = [name.replace(".attn.qkv.", f".attention.{p}_proj.") for p in "qkv"]
        return torch.cat([ours[stem] for stem in stems])
    if ".attention.wqkv." in name:
        stems = [
            name.replace(".attention.wqkv.", f".self_attn.{p}_proj.") for p in "qkv"
        ]
        return fuse_wqkv([ours[stem] for stem in stems], config)
    return ours.get(name, tensor)


def merge_lora(named: NamedTensors, scale: float) -> Iterator[tuple[str, Tensor]]:
    """Yields weights with their LoRA matrices merged.

    Args:
        named: Pairs of names and tensors; weights with LoRA come in three parts.
        scale: Factor of the LoRA product: alpha divided by rank.

    Raises:
        WeightsError: When a part is missing.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named:
        match = _LORA.match(name)
        if match is None:
            yield name, tensor
            continue
        stem, part = match[1], match[2].split(".")[0]
        parts = waiting.setdefault(stem, {})
        parts[part] = tensor
        if len(parts) == 3:
            del waiting[stem]
            added = parts["lora_B"].float() @ parts["lora_A"].float()
            base = parts["base_layer"]
            yield f"{stem}.weight", (base.float() + scale * added).to(base.dtype)
    if waiting:
        raise WeightsError(
            f"LoRA weights lack a part of {', '.join(sorted(waiting)[:6])}; fetch them "
            "again"
        )


def of_family(
    named: NamedTensors, folder: Path, config: UrecaConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yields tensors unless they are of the other language model.

    Raises:
        WeightsError: When they are.
    """
    signs = {"qwen2": ".self_attn.q_proj.", "internlm2": ".attention.wqkv."}
    for name, tensor in named:
        for family, sign in signs.items():
            if family != config.family and sign in name:
                raise WeightsError(
                    f"{folder}: config.json names a language model of {config.family}, "
                    f"but the weights are of {family} ({name}); give config.json and "
                    "weights of one checkpoint"
                )
        yield name, tensor
