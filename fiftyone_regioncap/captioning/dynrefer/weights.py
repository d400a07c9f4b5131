"""Loads the trained part of DynRefer and the public base weights it rests on.

Names are those of the published files. Every tensor must find its place and every
place its tensor; sizes are read off the tensors wherever they show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
)

from fiftyone_regioncap.captioning.dynrefer.heads import HeadSizes
from fiftyone_regioncap.captioning.dynrefer.model import DynReferConfig, DynReferModel
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import (
    NamedTensors,
    Renaming,
    build_config,
    config_errors,
    fetch_checkpoint,
    load_strict,
    read_json,
    read_tensors,
    rename,
)

BLIP2 = "Salesforce/blip2-flan-t5-xl"
"""Hub repository with the ViT, the query tokens and the T5."""

EVA_CLIP = ("BAAI/EVA", "eva_clip_psz14.pt")
"""Hub repository and file with the text tower."""

TRAINED = ("dynrefer_ckpt.safetensors", "dynrefer_ckpt.pth")
"""Files with the trained part, under other names than the published."""

PUBLISHED = ("vg1.2_5e.pth", "refcocog_ft.pth")
"""The authors' checkpoints."""

WHERE = (
    "The authors give vg1.2_5e.pth and refcocog_ft.pth in a OneDrive folder that "
    "github.com/callsys/DynRefer links to; docs/dynrefer.md lists all files"
)

State = dict[str, Tensor]

_RENAMED: Renaming = (
    (r"^cem_memory$", "control_memory"),
    (r"^t5_proj\.", "language_projection."),
    (r"^cvem_align\.", "align."),
    (r"^cvem_mlp\.", "fusion."),
    (r"^attr_t$", "attributes.temperature"),
    (r"^attr_b$", "attributes.bias"),
    (r"^tag_", "tags."),
    (r"^attr_", "attributes."),
    (r"^(tags|attributes)\.head\.encoder\.layer\.", r"\1.layers."),
    (r"\.crossattention\.self\.(query|key|value)\.", r".\1."),
    (r"(layers\.\d+)\.crossattention\.output\.dense\.", r"\1.attended."),
    (r"(layers\.\d+)\.crossattention\.output\.LayerNorm\.", r"\1.attended_norm."),
    (r"(layers\.\d+)\.intermediate\.dense\.", r"\1.widen."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.narrow."),
    (r"(layers\.\d+)\.output\.LayerNorm\.", r"\1.norm."),
)
"""From the checkpoint's names of all but the Q-Former to ours."""

_QFORMER: Renaming = (
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"attention\.self\.", "attention.attention."),
)
"""From the checkpoint's names of the Q-Former to transformers'."""

_VISION: Renaming = (
    (r"^visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"^ln_vision\.", "vision.post_layernorm."),
)
"""From LAVIS's names of the ViT to transformers'."""

_TEXT: Renaming = (
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
)
"""From EVA-CLIP's names of the text tower to transformers'."""


@dataclass(frozen=True)
class Files:
    """Locates the parts of a model.

    Attributes:
        folder: Folder that the user named.
        trained: File with the trained part.
        settings: Content of ``config.json``; empty where there is none.
        blip2: Folder in transformers' format with the base weights, where it is used.
        tokenizer: The T5's tokenizer, in the format of the tokenizers library.
    """

    folder: Path
    trained: Path
    settings: Mapping[str, Any]
    blip2: Path | None
    tokenizer: Path

    def find(self, *names: str) -> Path | None:
        """Returns the first of several names that is in the folder."""
        return _find(self.folder, *names)

    @property
    def config(self) -> str:
        """Returns the file that the settings are from, for messages."""
        return str(self.folder / "config.json")


def locate(folder: Path, checkpoint: str | None = None) -> Files:
    """Finds the files of a model; what only the hub has is downloaded.

    Args:
        folder: A folder as docs/dynrefer.md describes it.
        checkpoint: Name of the file with the trained part, where there are several.

    Raises:
        WeightsError: If something is missing; names the first such thing.
    """
    if not folder.is_dir():
        raise WeightsError(
            f"dynrefer's weights are a folder, and {folder} is none. {WHERE}"
        )
    names = (*TRAINED, *PUBLISHED) if checkpoint is None else (checkpoint,)
    there = [folder / name for name in names if (folder / name).is_file()]
    # The same weights may be there in both formats.
    found = [
        path
        for path in there
        if path.suffix == ".safetensors"
        or path.with_suffix(".safetensors") not in there
    ]
    if len(found) != 1:
        several = ", ".join(path.name for path in found)
        raise WeightsError(
            f"{folder} has several checkpoints ({several}); choose one with checkpoint="
            if found
            else f"{folder} has no {checkpoint or ' or '.join(PUBLISHED)}. {WHERE}"
        )
    settings = folder / "config.json"
    own_base = _find(folder, "base_blip2.safetensors", "eva_vit_g.pth")
    own_language = _find(folder, "t5.safetensors", "flan-t5-xl")
    blip2 = _find(folder, "blip2-flan-t5-xl")
    if blip2 is None and (own_base is None or own_language is None):
        advice = f"Or put it into {folder} as blip2-flan-t5-xl"
        blip2 = fetch_checkpoint(BLIP2, advice=advice)
    tokenizer = _find(folder, "tokenizer.json", "flan-t5-xl/tokenizer.json")
    if tokenizer is None and blip2 is not None:
        tokenizer = _find(blip2, "tokenizer.json")
    if tokenizer is None:
        raise WeightsError(
            f"{folder} has no tokenizer.json; put that of google/flan-t5-xl there"
        )
    return Files(
        folder=folder,
        trained=found[0],
        settings=read_json(settings) if settings.is_file() else {},
        blip2=blip2,
        tokenizer=tokenizer,
    )


def load_model(files: Files) -> DynReferModel:
    """Loads all networks but the text tower, in float32 on the CPU.

    Raises:
        WeightsError: If a file is missing, corrupt, or of another architecture.
    """
    trained = read_trained(files.trained)
    base = _read_base(files)
    language, sizes = _read_language(files)
    with config_errors(str(files.folder)):
        config = _sizes(files, trained, base, sizes)
        with torch.device("meta"):
            model = DynReferModel(config)
    named = {**trained, **base, **{f"language.{k}": t for k, t in language.items()}}
    load_strict(model, named.items(), f"the files of {files.folder}", advice=WHERE)
    return model


def load_text_tower(files: Files) -> CLIPTextModelWithProjection:
    """Loads EVA-CLIP's text tower, in float32 on the CPU.

    Raises:
        WeightsError: If its file is missing, corrupt, or of another architecture.
    """
    repository, name = EVA_CLIP
    path = files.find("eva_clip_text.safetensors", "eva_clip_text.npz", name)
    if path is None:
        advice = f"Or put {name} of {repository} into {files.folder}"
        path = fetch_checkpoint(repository, files=(name,), advice=advice) / name
    state = {
        key.removeprefix("text."): tensor
        for key, tensor in read_tensors(path, lambda key: key.startswith("text."))
    }
    for unused in ("logit_scale", "attn_mask"):
        state.pop(unused, None)
    with config_errors(f"{path} ({name} of {repository} is what is wanted)"):
        projection = state.pop("text_projection").T.contiguous()
        vocabulary, width = state["token_embedding.weight"].shape
        context = len(state["positional_embedding"])
        sizes = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
            "projection_dim": len(projection),
            "num_hidden_layers": _count(state, r"^transformer\.resblocks\.(\d+)\."),
            "max_position_embeddings": context,
            "hidden_act": "gelu",
        }
    with config_errors(files.config):
        heads = files.settings.get("text", {}).get("heads", max(1, width // 64))
    sizes["num_attention_heads"] = _heads(heads, width, f"{files.config}: text.heads")
    config = build_config(CLIPTextConfig, sizes, str(path))
    with torch.device("meta"):
        tower = CLIPTextModelWithProjection(config)
    named = _renamed(_split_attention(state), _TEXT)
    named["text_projection.weight"] = projection
    load_strict(tower, named.items(), path)
    # Not in any file: transformers keeps the positions as a buffer of its own.
    tower.text_model.embeddings.position_ids = torch.arange(context)[None]
    return tower


def read_trained(path: Path) -> State:
    """Reads the trained part, under our names.

    Raises:
        WeightsError: If it is no DynRefer checkpoint.
    """
    state = {
        key.removeprefix("module."): tensor
        for key, tensor in read_tensors(path)
        if not key.endswith("position_ids")
    }
    if any(".lora_" in key or "base_model." in key for key in state):
        raise WeightsError(
            f"{path} was trained with LoRA on the language model, which no published "
            f"checkpoint is; merge it first. {WHERE}"
        )
    if "cem_memory" not in state or "cvem_mlp.0.weight" not in state:
        raise WeightsError(f"{path} is no DynRefer checkpoint. {WHERE}")
    return our_names(state)


def published(
    trained: Iterable[tuple[str, Tensor]],
) -> Iterator[tuple[str, str, Tensor]]:
    """Yields tensors of the trained part with their published name and ours."""
    for key, tensor in trained:
        name = key.removeprefix("module.")
        renaming = _QFORMER if name.startswith("Qformer.") else _RENAMED
        yield name, rename(name, renaming), tensor


def our_names(trained: State) -> State:
    """Renames the trained part from its published names to those of the model."""
    return {name: tensor for _, name, tensor in published(trained.items())}


def _read_base(files: Files) -> State:
    """Reads the ViT and the query tokens, under our names."""
    single = files.find("base_blip2.safetensors")
    if single is not None:
        return _from_lavis(read_tensors(single))
    if files.find("eva_vit_g.pth") is not None:
        parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
        tower = read_tensors(
            files.folder / "eva_vit_g.pth", lambda key: key.startswith(parts)
        )
        rest = read_tensors(files.folder / "blip2_pretrained_flant5xl.pth")
        return _from_lavis([*((f"visual_encoder.{k}", t) for k, t in tower), *rest])
    assert files.blip2 is not None
    wanted = ("vision_model.", "query_tokens")
    return {
        key.replace("vision_model.", "vision."): tensor
        for key, tensor in read_tensors(files.blip2, lambda k: k.startswith(wanted))
    }


def _from_lavis(tensors: NamedTensors) -> State:
    wanted = ("visual_encoder.", "ln_vision.", "query_tokens")
    state = {key: tensor for key, tensor in tensors if key.startswith(wanted)}
    biases = [key.removesuffix(".q_bias") for key in state if key.endswith(".q_bias")]
    for attention in biases:
        if f"{attention}.v_bias" in state:
            query = state.pop(f"{attention}.q_bias")
            value = state.pop(f"{attention}.v_bias")
            # Keys have no bias.
            state[f"{attention}.qkv.bias"] = torch.cat(
                [query, torch.zeros_like(query), value]
            )
    return _renamed(state.items(), _VISION)


def _read_language(files: Files) -> tuple[State, T5Config]:
    """Reads the T5 and its sizes."""
    prefix = ""
    source, folder = files.find("t5.safetensors"), files.find("flan-t5-xl")
    if source is not None:
        sizes, where = files.settings.get("t5"), f'{files.config} under "t5"'
    elif folder is not None:
        source, where = folder, str(folder / "config.json")
        sizes = read_json(folder / "config.json")
    else:
        assert files.blip2 is not None
        source, prefix = files.blip2, "language_model."
        where = f'{source / "config.json"} under "text_config"'
        sizes = read_json(source / "config.json").get("text_config")
    if not isinstance(sizes, dict):
        raise WeightsError(
            f"the T5's sizes are missing; put T5's own config into {where}"
        )
    state = {
        key.removeprefix(prefix): tensor
        for key, tensor in read_tensors(source, lambda key: key.startswith(prefix))
    }
    return state, build_config(T5Config, sizes, where)


def _sizes(
    files: Files, trained: State, base: State, language: T5Config
) -> DynReferConfig:
    """Reads sizes off the tensors, and off the settings what doesn't show there."""
    said = files.settings
    queries, tokens = base["query_tokens"].shape[1:]
    positions, width = base["vision.embeddings.position_embedding"].shape[1:]
    patch = base["vision.embeddings.patch_embedding.weight"].shape[-1]
    head_width, text_width = trained["tags.text_proj.weight"].shape
    fused = trained["fusion.0.weight"].shape[1]
    views, rest = divmod(fused, width)
    if rest or int(said.get("num_views", views)) != views:
        raise WeightsError(
            f"{files.trained.name} fuses {fused / width:g} views of a ViT of width "
            f"{width}, config.json says {said.get('num_views', 'nothing')}; the "
            "checkpoint and the base weights are not of one model"
        )
    layer = r"^qformer\.encoder\.layer\.(\d+)\."
    layers = _count(trained, layer)
    crossing = sorted(_numbers(trained, layer + "crossattention"))
    head = files.find("tag_bert_config.json")
    heads = read_json(head)["num_attention_heads"] if head else 4
    return DynReferConfig(
        vision=build_config(
            Blip2VisionConfig,
            {
                "hidden_size": width,
                "intermediate_size": len(
                    base["vision.encoder.layers.0.mlp.fc1.weight"]
                ),
                "num_hidden_layers": _count(base, r"^vision\.encoder\.layers\.(\d+)\."),
                "num_attention_heads": _heads(
                    said.get("vit_heads", max(1, width // 88)),
                    width,
                    f"{files.config}: vit_heads",
                ),
                "image_size": round((positions - 1) ** 0.5) * patch,
                "patch_size": patch,
            },
            "the ViT",
        ),
        qformer=build_config(
            Blip2QFormerConfig,
            {
                "hidden_size": tokens,
                "num_hidden_layers": layers,
                "num_attention_heads": _heads(
                    said.get("q_heads", max(1, tokens // 64)),
                    tokens,
                    f"{files.config}: q_heads",
                ),
                "intermediate_size": len(
                    trained["qformer.encoder.layer.0.intermediate_query.dense.bias"]
                ),
                "encoder_hidden_size": width,
                "cross_attention_frequency": (
                    crossing[1] if len(crossing) > 1 else layers
                ),
                "layer_norm_eps": 1e-12,
            },
            "the Q-Former",
        ),
        language=language,
        head=HeadSizes(
            width=head_width,
            hidden=len(trained["tags.layers.0.widen.weight"]),
            layers=_count(trained, r"^tags\.layers\.(\d+)\."),
            heads=_heads(heads, head_width, f"{head}: num_attention_heads"),
            text_width=text_width,
        ),
        views=views,
        queries=queries,
    )


def _heads(heads: Any, width: int, where: str) -> int:
    """Checks a number of attention heads.

    Raises:
        WeightsError: If it is none, or does not divide the channels.
    """
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise WeightsError(
            f"{where} is {heads!r}; give a whole number that divides {width} channels"
        )
    return heads


def _split_attention(state: State) -> Iterator[tuple[str, Tensor]]:
    """Splits queries, keys and values, as transformers has them."""
    for key, tensor in state.items():
        joint, _, kind = key.rpartition(".attn.in_proj_")
        if joint:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{joint}.self_attn.{name}_proj.{kind}", part
        else:
            yield key, tensor


def _renamed(tensors: NamedTensors, renaming: Renaming) -> State:
    return {rename(key, renaming): tensor for key, tensor in tensors}


def _numbers(state: Iterable[str], pattern: str) -> set[int]:
    """Returns the layer numbers in the names that match."""
    return {int(m[1]) for key in state if (m := re.match(pattern, key))}


def _count(state: Iterable[str], pattern: str) -> int:
    """Returns how many layers there are, by the highest number in their names."""
    return max(_numbers(state, pattern), default=-1) + 1


def _find(folder: Path, *names: str) -> Path | None:
    return next((path for name in names if (path := folder / name).exists()), None)
