"""Checkpoints with random weights: the real layout in any size; and plain ways to run.

For measuring speed at the published model's shapes where its weights are not at hand,
and for tests at other shapes. What such a model says means nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fiftyone_regioncap.captioning.dam.config import (
    ADAPTERS,
    LLM,
    PROJECTOR,
    VISION,
    AdapterConfig,
    DAMConfig,
    EncoderConfig,
)
from fiftyone_regioncap.captioning.dam.generation import Engine, Event, Request
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.prompts import SYSTEM, VIDEO_PROMPTS
from fiftyone_regioncap.captioning.dam.sizes import DAM_3B
from fiftyone_regioncap.captioning.dam.tokenizer import DamTokenizer, TextStream
from fiftyone_regioncap.captioning.dam.vision import FocalEncoder, Projector
from fiftyone_regioncap.models.loading import INDEX, SINGLE
from fiftyone_regioncap.models.sampling import GREEDY, Sampling

TINY = DAMConfig(
    image=replace(DAM_3B.image, size=112),
    vision=EncoderConfig(32, 64, 3, 2, 1e-6, "gelu_pytorch_tanh"),
    patch_size=14,
    used_layers=2,
    adapters=AdapterConfig(),
    llm=LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=320,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
    ),
    context=2048,
)
"""Small enough for a test: an even patch grid and grouped-query attention."""


def random_dam(
    config: DAMConfig,
    tokenizer: DamTokenizer,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> DAM:
    """Makes a model with random weights on its device.

    Args:
        config: Sizes of the networks.
        tokenizer: Tokenizer of no more tokens than the config's vocabulary.
        device: Device that it runs on; the CPU by default.
        dtype: Type of its weights and activations; float32 by default.
        seed: Seed of the weights; 0 by default.
    """
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        encoder, projector = FocalEncoder(config), Projector(config)
        llm = LlamaForCausalLM(config.llm)
    for part in (encoder, projector, llm):
        _randomise(part.to_empty(device=device).to(dtype), generator)
    llm.model.rotary_emb = LlamaRotaryEmbedding(config.llm).to(device)
    if config.llm.tie_word_embeddings:
        llm.lm_head.weight = llm.model.embed_tokens.weight
    return DAM(config, tokenizer, encoder, projector, llm)


def write_checkpoint(
    folder: Path, config: DAMConfig = TINY, seed: int = 0, llm_shards: int = 1
) -> None:
    """Writes a checkpoint of random weights that :meth:`DAM.from_pretrained` reads.

    Args:
        folder: Folder of the checkpoint; created if absent.
        config: Sizes of the networks; the tokenizer has at most the config's
            vocabulary.
        seed: Seed of the weights; 0 by default.
        llm_shards: Number of files of the language model's weights; 1 by default.
    """
    for part in (LLM, VISION, PROJECTOR, ADAPTERS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _write_configs(folder, config)
    train_tokenizer(folder / LLM, min(config.llm.vocab_size, 320))
    dam = random_dam(config, DamTokenizer(folder / LLM), seed=seed)
    prefix = "vision_model."
    save_file(_weights(dam.encoder.tower, prefix), folder / VISION / SINGLE)
    prefix = "context_provider_module."
    save_file(_weights(dam.encoder.adapters, prefix), folder / ADAPTERS / SINGLE)
    save_file(_weights(dam.projector), folder / PROJECTOR / SINGLE)
    weights = _weights(dam.llm)
    if llm_shards == 1:
        save_file(weights, folder / LLM / SINGLE)
        return
    names = sorted(weights)
    where: dict[str, str] = {}
    for number in range(llm_shards):
        file = f"model-{number + 1:05}-of-{llm_shards:05}.safetensors"
        part_names = names[number::llm_shards]
        save_file({name: weights[name] for name in part_names}, folder / LLM / file)
        where |= dict.fromkeys(part_names, file)
    (folder / LLM / INDEX).write_text(json.dumps({"weight_map": where}))


def train_tokenizer(folder: Path, size: int) -> None:
    """Writes a small sentencepiece model of Llama's kind, ``tokenizer.model``.

    Args:
        folder: Folder to write to.
        size: Size of its vocabulary, 260 or more: bytes take 256.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SYSTEM, *VIDEO_PROMPTS.values()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def _randomise(part: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            elif name.endswith("_factor"):
                parameter.fill_(0.5)
            else:
                # Wide enough for answers that differ, narrow enough for no overflow.
                width = parameter.shape[-1] if parameter.ndim > 1 else 64
                parameter.normal_(std=width**-0.5, generator=generator)


def _weights(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        prefix + name: value.detach().clone()
        for name, value in module.named_parameters()
    }


def _write_configs(folder: Path, config: DAMConfig) -> None:
    vision, image = config.vision, config.image
    encoder = {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "layer_norm_eps": vision.eps,
        "hidden_act": vision.activation,
        "image_size": image.size,
        "patch_size": config.patch_size,
    }
    files: dict[str, dict[str, object]] = {
        "config.json": {
            "model_type": "llava_llama",
            "llm_cfg": {},
            "vision_tower_cfg": {"architectures": ["SiglipVisionModel"]},
            "mm_projector_cfg": {},
            "context_provider_cfg": {},
            "mm_vision_select_layer": config.used_layers - vision.layers - 1,
            "mm_vision_select_feature": "cls_patch",
            "image_aspect_ratio": "pad" if image.pad else "resize",
        },
        f"{LLM}/config.json": {
            **config.llm.to_dict(),
            "tokenizer_model_max_length": config.context,
        },
        f"{VISION}/config.json": {"architectures": ["SiglipVisionModel"], **encoder},
        f"{VISION}/preprocessor_config.json": {
            "size": {"height": image.size, "width": image.size},
            "resample": image.resample,
            "rescale_factor": image.scale,
            "image_mean": image.mean,
            "image_std": image.std,
        },
        f"{PROJECTOR}/config.json": {"mm_projector_type": "mlp_downsample"},
        f"{ADAPTERS}/config.json": {
            "context_provider_type": "cross_attn_end_to_all",
            "zero_init_output": config.adapters.gated,
            "treat_image_as_cimage": config.adapters.always,
            "masked_cross_attn": config.adapters.masked,
            "context_image_as_queries": config.adapters.swapped,
            **encoder,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))


class Generated(NamedTuple):
    """Generated answers, in the order of the prompts.

    Attributes:
        ids: New tokens, with the end token where there was one.
        texts: The same as text, without special tokens, stripped.
    """

    ids: list[list[int]]
    texts: list[str]


IDLE: WeakKeyDictionary[DAM, Engine] = WeakKeyDictionary()
"""The engine of the last run of each model, whose cache the next one takes."""


def run(dam: DAM, requests: Sequence[Request], rows: int) -> Iterator[Event]:
    """Answers requests, so many at once, and reports every token."""
    engine = IDLE.pop(dam, None)
    if engine is None or engine.capacity != rows:
        engine = None  # its memory goes first
        engine = dam.engine(rows)
    waiting = list(reversed(requests))
    while waiting or engine.busy:
        free = min(engine.free, len(waiting))
        engine.add([waiting.pop() for _ in range(free)])
        yield from engine.step()
    # Only here: one that was abandoned half way is of no use to the next run.
    IDLE[dam] = engine


def generate(
    dam: DAM,
    batch_of_views: Sequence[torch.Tensor] | torch.Tensor,
    queries: Sequence[str],
    max_new_tokens: int = 512,
    ignore_stop: bool = False,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
) -> Generated:
    """Answers several prompts at once.

    Args:
        dam: The model.
        batch_of_views: For each prompt (T, 8, S, S), or (8, S, S) for one image.
        queries: Queries, one for each.
        max_new_tokens: Greatest number of tokens of an answer.
        ignore_stop: Whether they go on past the end token.
        sampling: Sampling of each, or of all; greedy by default.

    Raises:
        PromptError: When a query doesn't fit its images or the context.
    """
    count = len(batch_of_views)
    each = [sampling] * count if isinstance(sampling, Sampling) else sampling
    requests = []
    for number, (views, query, one) in enumerate(
        zip(batch_of_views, queries, each, strict=True)
    ):
        prompt = embeddings(dam, views, query)
        limit = dam.new_tokens(prompt, max_new_tokens)
        requests.append(Request(number, prompt, limit, one, ignore_stop))
    ids: list[list[int]] = [[] for _ in requests]
    longest = max(len(r.embeddings) + r.max_new_tokens for r in requests)
    for event in run(dam, requests, dam.rows_that_fit(longest, count)):
        if event.answer is not None:
            ids[event.key] = event.answer.ids
    return Generated(ids, [dam.tokenizer.answer(tokens) for tokens in ids])


def stream(
    dam: DAM, views: torch.Tensor, query: str, max_new_tokens: int = 512
) -> Iterator[str]:
    """Yields the answer for one object as it comes, in pieces that end at spaces."""
    prompt = embeddings(dam, views, query)
    request = Request("stream", prompt, dam.new_tokens(prompt, max_new_tokens))
    text = TextStream(dam.tokenizer)
    for event in run(dam, [request], 1):
        yield text.put(event.token)
    yield text.end()


def embeddings(dam: DAM, views: torch.Tensor, query: str) -> torch.Tensor:
    """Returns the language model's input for the views of one object.

    Args:
        dam: The model.
        views: (T, 8, S, S), or (8, S, S) for one image.
        query: With one ``<image>`` for each.
    """
    views = views[None] if views.ndim == 3 else views
    return dam.embed(dam.prompt_ids(query), dam.encode(views))


def first_logits(dam: DAM, views: torch.Tensor, query: str) -> torch.Tensor:
    """Logits of the first new token, float32 (V,)."""
    return step_logits(dam, views, query, [])[0]


@torch.inference_mode()
def step_logits(
    dam: DAM, views: torch.Tensor, query: str, answer: Sequence[int]
) -> torch.Tensor:
    """Logits before each token of a given answer and after its last.

    Computed in one pass without a cache, to compare the other ways with.

    Returns:
        float32 (len(answer) + 1, V).
    """
    prompt = embeddings(dam, views, query)
    ids = torch.tensor(answer, dtype=torch.int64, device=dam.device)
    whole = torch.cat([prompt, dam.llm.model.embed_tokens(ids)])
    output = dam.llm(inputs_embeds=whole[None], use_cache=False)
    return output.logits[0, len(prompt) - 1 :].float()


@torch.inference_mode()
def hidden_states(
    encoder: FocalEncoder, views: torch.Tensor, context: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Returns every hidden state of the tower, by name.

    Args:
        encoder: The tower with its adapters.
        views: One view (B, 4, S, S).
        context: (B, N, C) to run the adapters with.

    Returns:
        ``embeddings``, ``layer{i}`` and, with a context, ``adapter{i}``.
    """
    visible = None if context is None else encoder._visible(views)
    x = encoder.tower.embeddings(views)
    states = {"embeddings": x}
    for number, layer in enumerate(encoder.tower.encoder.layers):
        x = states[f"layer{number}"] = layer(x)
        if context is not None:
            adapter = encoder.adapters.layers[number]
            x = states[f"adapter{number}"] = adapter(x, context, visible)
    return states
