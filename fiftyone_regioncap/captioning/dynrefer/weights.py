"""From files to a model: the trained part, and the public base weights it rests on.

Names are those of the published files. Every tensor must find its place and every
place its tensor; sizes are read off the tensors wherever they show.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
)

from fiftyone_regioncap.captioning.dynrefer.model import (
    DynReferConfig,
    DynReferModel,
    HeadSizes,
)
from fiftyone_regioncap.core.errors import WeightsError

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

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile)
"""What torch and numpy raise when a file is cut off or no file of theirs."""

_RENAMED: tuple[tuple[str, str], ...] = (
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

_QFORMER: tuple[tuple[str, str], ...] = (
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"attention\.self\.", "attention.attention."),
)
"""From the checkpoint's names of the Q-Former to transformers'."""

_VISION: tuple[tuple[str, str], ...] = (
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

_TEXT: tuple[tuple[str, str], ...] = (
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
    """Where everything is.

    Attributes:
        folder: that the user named.
        trained: the file with the trained part.
        settings: what ``config.json`` says; empty where there is none.
        blip2: a folder in transformers' format with the base, where it is used.
        tokenizer: of the T5, in the format of the tokenizers library.
    """

    folder: Path
    trained: Path
    settings: Mapping[str, Any]
    blip2: Path | None
    tokenizer: Path

    def find(self, *names: str) -> Path | None:
        """The first of these that is in the folder."""
        return _find(self.folder, *names)


def locate(folder: Path, checkpoint: str | None = None) -> Files:
    """Looks for what a model needs; what only the hub has is fetched from there.

    Args:
        folder: as docs/dynrefer.md lists it.
        checkpoint: name of the file with the trained part, where there are several.

    Raises:
        WeightsError: naming the first thing that is missing.
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
        blip2 = _from_hub(BLIP2)
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
        settings=_json(settings) if settings.is_file() else {},
        blip2=blip2,
        tokenizer=tokenizer,
    )


def load_model(files: Files) -> DynReferModel:
    """Loads all networks but the text tower, in float32 on the CPU.

    Raises:
        WeightsError: when a file is missing, corrupt, or of another architecture.
    """
    trained = read_trained(files.trained)
    base = _read_base(files)
    language, language_config = _read_language(files)
    config = _sizes(files, trained, base, language_config)
    with torch.device("meta"):
        model = DynReferModel(config)
    named = {
        **trained,
        **base,
        **{f"language.{key}": tensor for key, tensor in language.items()},
    }
    assign(model, named, f"the files of {files.folder}")
    return model


def load_text_tower(files: Files) -> CLIPTextModelWithProjection:
    """Loads EVA-CLIP's text tower, in float32 on the CPU.

    Raises:
        WeightsError: when its file is missing, corrupt, or of another architecture.
    """
    path = files.find(
        "eva_clip_text.safetensors", "eva_clip_text.npz", EVA_CLIP[1]
    ) or _from_hub(*EVA_CLIP)
    state = {
        key.removeprefix("text."): tensor.float()
        for key, tensor in read_tensors(path).items()
        if key.startswith("text.")
    }
    for unused in ("logit_scale", "attn_mask"):
        state.pop(unused, None)
    try:
        projection = state.pop("text_projection").T.contiguous()
        vocabulary, width = state["token_embedding.weight"].shape
        context = len(state["positional_embedding"])
        hidden = len(state["transformer.resblocks.0.mlp.c_fc.weight"])
    except KeyError as error:
        raise WeightsError(
            f"{path} has no EVA-CLIP text tower: {error} is missing; give "
            f"{EVA_CLIP[1]} of {EVA_CLIP[0]}"
        ) from error
    text = files.settings.get("text", {})
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        projection_dim=len(projection),
        num_hidden_layers=_count(state, r"^transformer\.resblocks\.(\d+)\."),
        num_attention_heads=int(text.get("heads", max(1, width // 64))),
        max_position_embeddings=context,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        tower = CLIPTextModelWithProjection(config)
    named = _rename(dict(_split_attention(state)), _TEXT)
    named["text_projection.weight"] = projection
    assign(tower, named, str(path))
    # Not in any file: transformers keeps the positions as a buffer of its own.
    tower.text_model.embeddings.position_ids = torch.arange(context)[None]
    return tower


def assign(module: nn.Module, state: State, source: str) -> None:
    """Gives a module its weights, all of them and nothing else, frozen.

    Raises:
        WeightsError: naming what is missing, unknown, or of another size.
    """
    wanted = {key: tensor.shape for key, tensor in module.state_dict().items()}
    wrong = [
        *(f"{key} is missing" for key in wanted if key not in state),
        *(f"{key} is unknown" for key in state if key not in wanted),
        *(
            f"{key} is {tuple(state[key].shape)} and not {tuple(shape)}"
            for key, shape in wanted.items()
            if key in state and state[key].shape != shape
        ),
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise WeightsError(f"{source} don't fit together: {', '.join(wrong[:5])}{more}")
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def read_trained(path: Path) -> State:
    """The trained part under our names.

    Accepts what LAVIS saves (``{"model": ...}``) and a bare state dict.

    Raises:
        WeightsError: when it is no DynRefer checkpoint.
    """
    state = {
        key.removeprefix("module."): tensor.float()
        for key, tensor in read_tensors(path).items()
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


def our_names(trained: State) -> State:
    """The trained part, from the names it is published under to those of the model."""
    qformer = {k: t for k, t in trained.items() if k.startswith("Qformer.")}
    others = {k: t for k, t in trained.items() if k not in qformer}
    return {**_rename(others, _RENAMED), **_rename(qformer, _QFORMER)}


def read_tensors(path: Path) -> State:
    """All tensors of a file, by name; nothing in it is executed.

    Raises:
        WeightsError: when it is missing, corrupt, or holds more than plain data.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays}
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing. {WHERE}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and plain values and was not opened; "
            "save its state dict alone"
        ) from error
    except (*UNREADABLE, SafetensorError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); fetch it again"
        ) from error
    for wrapper in ("model", "state_dict", "module"):
        if isinstance(saved, dict) and isinstance(saved.get(wrapper), dict):
            saved = saved[wrapper]
    if not isinstance(saved, dict):
        raise WeightsError(f"{path} holds no tensors by name; give a state dict")
    return {key: value for key, value in saved.items() if isinstance(value, Tensor)}


def _read_base(files: Files) -> State:
    """The ViT and the query tokens, under our names."""
    single = files.find("base_blip2.safetensors")
    if single is not None:
        return _from_lavis(read_tensors(single))
    if files.find("eva_vit_g.pth") is not None:
        tower = read_tensors(files.folder / "eva_vit_g.pth")
        rest = read_tensors(files.folder / "blip2_pretrained_flant5xl.pth")
        tower = {
            f"visual_encoder.{key}": tensor
            for key, tensor in tower.items()
            if key.startswith(("cls_token", "pos_embed", "patch_embed.", "blocks."))
        }
        return _from_lavis({**tower, **rest})
    assert files.blip2 is not None
    return {
        key.replace("vision_model.", "vision."): tensor.float()
        for key, tensor in _read_sharded(files.blip2, ("vision_model.", "query_tokens"))
    }


def _from_lavis(state: State) -> State:
    state = {
        key: tensor.float()
        for key, tensor in state.items()
        if key.startswith(("visual_encoder.", "ln_vision.")) or key == "query_tokens"
    }
    biases = [key.removesuffix(".q_bias") for key in state if key.endswith(".q_bias")]
    for attention in biases:
        if f"{attention}.v_bias" in state:
            query = state.pop(f"{attention}.q_bias")
            value = state.pop(f"{attention}.v_bias")
            # Keys have no bias.
            state[f"{attention}.qkv.bias"] = torch.cat(
                [query, torch.zeros_like(query), value]
            )
    return _rename(state, _VISION)


def _read_language(files: Files) -> tuple[State, T5Config]:
    """The T5 and its sizes."""
    single, folder = files.find("t5.safetensors"), files.find("flan-t5-xl")
    if single is not None:
        state = read_tensors(single)
        sizes, said_in = files.settings.get("t5"), 'config.json under "t5"'
    elif folder is not None:
        state = dict(_read_sharded(folder, ("",)))
        sizes, said_in = _json(folder / "config.json"), "flan-t5-xl/config.json"
    else:
        assert files.blip2 is not None
        prefix = "language_model."
        state = {
            key.removeprefix(prefix): tensor
            for key, tensor in _read_sharded(files.blip2, (prefix,))
        }
        config = _json(files.blip2 / "config.json")
        sizes, said_in = config.get("text_config"), "BLIP-2's config.json"
    if not isinstance(sizes, dict):
        raise WeightsError(
            f"{files.folder}: the T5's sizes are missing; put T5's own config into "
            f"{said_in}"
        )
    if "shared.weight" in state:
        for side in ("encoder", "decoder"):
            state.setdefault(f"{side}.embed_tokens.weight", state["shared.weight"])
        if sizes.get("tie_word_embeddings", True):
            state.setdefault("lm_head.weight", state["shared.weight"])
    return {key: tensor.float() for key, tensor in state.items()}, T5Config(**sizes)


def _read_sharded(
    folder: Path, prefixes: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    """Some tensors of a folder in transformers' format, file by file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index)["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        # Names come out of a file: they must stay inside the folder.
        path = folder / Path(name).name
        if not path.is_file():
            raise WeightsError(f"{path} is missing; fetch {folder.name} again")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if key.startswith(prefixes):
                        yield key, file.get_tensor(key)
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is corrupt ({error}); fetch it again"
            ) from error


def _sizes(
    files: Files, trained: State, base: State, language: T5Config
) -> DynReferConfig:
    """Reads sizes off the tensors, and off the settings what doesn't show there."""
    said = files.settings
    try:
        queries, tokens = base["query_tokens"].shape[1:]
        positions, width = base["vision.embeddings.position_embedding"].shape[1:]
        patch = base["vision.embeddings.patch_embedding.weight"].shape[-1]
        hidden = len(base["vision.encoder.layers.0.mlp.fc1.weight"])
        tokens_hidden = len(
            trained["qformer.encoder.layer.0.intermediate_query.dense.bias"]
        )
        head_width, text_width = trained["tags.text_proj.weight"].shape
        head_hidden = len(trained["tags.layers.0.widen.weight"])
        fused = trained["fusion.0.weight"].shape[1]
    except KeyError as error:
        raise WeightsError(
            f"{files.folder}: {error} is missing; are the checkpoint and the base "
            f"weights those of DynRefer? {WHERE}"
        ) from error
    views, rest = divmod(fused, width)
    if rest or int(said.get("num_views", views)) != views:
        raise WeightsError(
            f"{files.trained.name} fuses {fused / width:g} views of a ViT of width "
            f"{width}, config.json says {said.get('num_views', 'nothing')}; the "
            "checkpoint and the base weights are not of one model"
        )
    head = files.find("tag_bert_config.json")
    crossing = sorted(
        {
            int(match[1])
            for key in trained
            if (
                match := re.match(
                    r"qformer\.encoder\.layer\.(\d+)\.crossattention", key
                )
            )
        }
    )
    layers = _count(trained, r"^qformer\.encoder\.layer\.(\d+)\.")
    return DynReferConfig(
        vision=Blip2VisionConfig(
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=_count(base, r"^vision\.encoder\.layers\.(\d+)\."),
            num_attention_heads=int(said.get("vit_heads", max(1, width // 88))),
            image_size=round((positions - 1) ** 0.5) * patch,
            patch_size=patch,
        ),
        qformer=Blip2QFormerConfig(
            hidden_size=tokens,
            num_hidden_layers=layers,
            num_attention_heads=int(said.get("q_heads", max(1, tokens // 64))),
            intermediate_size=tokens_hidden,
            encoder_hidden_size=width,
            cross_attention_frequency=crossing[1] if len(crossing) > 1 else layers,
            layer_norm_eps=1e-12,
        ),
        language=language,
        head=HeadSizes(
            width=head_width,
            hidden=head_hidden,
            layers=_count(trained, r"^tags\.layers\.(\d+)\."),
            heads=int(_json(head)["num_attention_heads"]) if head else 4,
            text_width=text_width,
        ),
        views=views,
        queries=queries,
    )


def _split_attention(state: State) -> Iterator[tuple[str, Tensor]]:
    """Query, key and value apart, as transformers has them."""
    for key, tensor in state.items():
        joint, _, kind = key.rpartition(".attn.in_proj_")
        if joint:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{joint}.self_attn.{name}_proj.{kind}", part
        else:
            yield key, tensor


def _rename(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for key, tensor in state.items():
        for pattern, ours in rules:
            key = re.sub(pattern, ours, key)
        renamed[key] = tensor
    return renamed


def _count(state: State, pattern: str) -> int:
    """How many layers there are, by the highest number in their names."""
    numbers = [int(m[1]) for key in state if (m := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


def _find(folder: Path, *names: str) -> Path | None:
    return next((path for name in names if (path := folder / name).exists()), None)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); fetch it again"
        ) from error


def _from_hub(repository: str, file: str | None = None) -> Path:
    """A file or the whole of a repository, out of the hub's cache where it is there."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if file is not None:
            return Path(hf_hub_download(repository, file))
        return Path(
            snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"])
        )
    except Exception as error:  # the hub's client raises its HTTP library's errors too
        wanted = f"{file} of {repository}" if file else repository
        place = file or repository.rpartition("/")[2]
        raise WeightsError(
            f"dynrefer needs {wanted}, and the hub did not give it: {error}. On a "
            f"machine with access, run `hf download {repository}"
            f"{f' {file}' if file else ''}`, and put it into the weights folder as "
            f"{place}"
        ) from error
