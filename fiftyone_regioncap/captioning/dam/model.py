"""The Describe Anything model (Lian et al. 2025, arXiv 2504.16072)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fiftyone_regioncap.captioning.dam.config import (
    ADAPTERS,
    LLM,
    PROJECTOR,
    VISION,
    DAMConfig,
)
from fiftyone_regioncap.captioning.dam.generation import Engine
from fiftyone_regioncap.captioning.dam.language import row_bytes
from fiftyone_regioncap.captioning.dam.processing import Processor, Window
from fiftyone_regioncap.captioning.dam.prompts import conversation
from fiftyone_regioncap.captioning.dam.quantization import Quantization, quantize
from fiftyone_regioncap.captioning.dam.tokenizer import IMAGE_ID, DamTokenizer
from fiftyone_regioncap.captioning.dam.vision import FocalEncoder, Projector
from fiftyone_regioncap.core.errors import PromptError, WeightsError
from fiftyone_regioncap.models.devices import choose_device
from fiftyone_regioncap.models.loading import load_strict, read_tensors
from fiftyone_regioncap.models.planning import rows_on
from fiftyone_regioncap.models.sampling import on_device
from fiftyone_regioncap.models.saving import adapter_base, apply_adapter
from fiftyone_regioncap.system import assets

PREFILL_TOKENS = {"cuda": 16384, "cpu": 1}
"""Prompt tokens read in one pass; 1 means one prompt at a time."""

VIEW_BATCH = {"cuda": 64, "cpu": 8}
"""Images encoded in one pass."""


class DAM:
    """The Describe Anything model on one device.

    Args:
        config: Configuration of the checkpoint.
        tokenizer: Tokenizer of the checkpoint.
        encoder: Vision encoder with its weights loaded.
        projector: Projector with its weights loaded.
        llm: Language model with its weights loaded.

    Attributes:
        config: Configuration of the checkpoint.
        tokenizer: Tokenizer of the checkpoint.
        processor: Preprocessing of images and masks to views.
        encoder: Vision encoder of both views.
        projector: Projection of image tokens into the language model's space.
        llm: Language model.
        view_batch: Number of images encoded in one pass; reduced when memory runs out.
    """

    def __init__(
        self,
        config: DAMConfig,
        tokenizer: DamTokenizer,
        encoder: FocalEncoder,
        projector: Projector,
        llm: LlamaForCausalLM,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.processor = Processor(config.image)
        self.encoder = encoder.eval().requires_grad_(False)
        self.projector = projector.eval().requires_grad_(False)
        self.llm = llm.eval().requires_grad_(False)
        self._table = torch.from_numpy(self.processor.table).to(self.device)
        channels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])
        self._channels = channels[:, None, None].to(self.device)
        self.view_batch = VIEW_BATCH.get(self.device.type, 8)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        quantization: Quantization | None = None,
    ) -> DAM:
        """Loads a checkpoint.

        Args:
            path: A folder, or the hub id of a published checkpoint; an adapter's folder
                too, which names its base.
            device: Torch device to run on.
            dtype: Numeric type: float32, float16 or bfloat16.
            quantization: Quantization of the language model's layers, through
                bitsandbytes.

        Raises:
            LicenseError: When the weights must be downloaded and their license has not
                been accepted.
            WeightsError: When the folder is not a whole checkpoint of this kind.
            BackendError: If the device or bitsandbytes is missing.
        """
        adapted = locate(path)
        base = adapter_base(adapted)
        folder = adapted if base is None else locate(base)
        target = choose_device(device)
        config = DAMConfig.read(folder)
        tokenizer = DamTokenizer(folder / LLM)
        with torch.device("meta"):
            encoder, projector = FocalEncoder(config), Projector(config)
            llm = LlamaForCausalLM(config.llm)
        # Quantized layers are made on the way to the device, not on it.
        place = torch.device("cpu") if quantization else target
        for module, part, device, prefix, unused in (
            (encoder.tower, VISION, target, "vision_model.", _unused_in_tower(config)),
            (
                encoder.adapters,
                ADAPTERS,
                target,
                "context_provider_module.",
                _unused_layer(config, "context_provider_module.layers."),
            ),
            (projector, PROJECTOR, target, "", lambda name: False),
            (llm, LLM, place, "", lambda name: name.endswith("rotary_emb.inv_freq")),
        ):
            load_strict(
                module,
                read_tensors(folder / part),
                folder / part,
                device=device,
                dtype=dtype,
                prefix=prefix,
                unused=unused,
            )
        # Frequencies are no weights: they were left without memory.
        llm.model.rotary_emb = LlamaRotaryEmbedding(config.llm).to(place)
        if base is not None:
            parts = {"encoder": encoder, "projector": projector, "llm": llm}
            apply_adapter(adapted, parts)
        if quantization:
            quantize(llm, quantization, target, dtype)
        return cls(config, tokenizer, encoder, projector, llm)

    @property
    def device(self) -> torch.device:
        """Returns the device that the model is on."""
        return next(self.projector.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Returns the numeric type that the model computes in."""
        return next(self.projector.parameters()).dtype

    def prepare(
        self,
        image: NDArray[np.uint8] | Image.Image,
        mask: NDArray[np.generic] | Image.Image,
    ) -> tuple[Tensor, Window]:
        """Makes the views of one object on one image.

        Args:
            image: RGB image, uint8 (H, W, 3); gray, RGBA and Pillow images too.
            mask: Object mask, (H, W); values above 0 belong to the object.

        Returns:
            float32 (8, S, S) on the CPU: full RGB and mask, crop RGB and mask, in -1 to
            1; and the window of the crop in pixels.

        Raises:
            PromptError: When the mask is empty, not 2-D, or of another size.
        """
        views, window = self.processor.views(image, mask)
        return torch.from_numpy(self.processor.normalize(views)), window

    def normalize(self, views: Tensor) -> Tensor:
        """Normalizes 8-bit views (B, 8, S, S) on the model's device."""
        views = views.to(self.device, non_blocking=True)
        values = self._table[self._channels, views.int()]
        return values.to(self.dtype)

    def features(self, views: Tensor, distinct: Tensor | None = None) -> Tensor:
        """Runs the tower with its adapters.

        Args:
            views: Views of :meth:`prepare`, (B, 8, S, S); or one, (8, S, S).
            distinct: Whether full view and crop differ, bool (B,) on the CPU, when
                known.

        Returns:
            What enters the projector, (B, N, C); (N, C) for one.
        """
        if views.ndim == 3:
            return self.features(views[None], distinct)[0]
        return self.encoder(views.to(self.device, self.dtype), distinct)

    def project(self, features: Tensor) -> Tensor:
        """Maps (B, N, C) or (N, C) to the prompt's tokens, (B, M, D) or (M, D)."""
        if features.ndim == 2:
            return self.project(features[None])[0]
        return self.projector(features.to(self.device, self.dtype))

    def encode(self, views: Tensor, distinct: Tensor | None = None) -> Tensor:
        """Encodes images as tokens (B, M, D), a bounded number of images at a time.

        Args:
            views: Views of :meth:`prepare`, float (B, 8, S, S), or of
                :meth:`Processor.views`, uint8 (B, 8, S, S).
            distinct: Whether full view and crop differ, as in :meth:`features`.
        """
        size = self.view_batch
        parts = []
        for start in range(0, len(views), size):
            some = views[start : start + size]
            if some.dtype == torch.uint8:
                some = self.normalize(some)
            known = None if distinct is None else distinct[start : start + size]
            parts.append(self.project(self.features(some, known)))
        return torch.cat(parts)

    def prompt_ids(self, query: str) -> list[int]:
        """Returns the ids of a conversation around a query; -200 stands for images."""
        return self.tokenizer.prompt_ids(conversation(query))

    def embed(self, ids: Sequence[int], images: Tensor) -> Tensor:
        """Returns the language model's input: embeddings of text and images in order.

        Args:
            ids: Token ids with -200 for each image.
            images: Image tokens, (T, M, D).

        Returns:
            (length, D).

        Raises:
            PromptError: If the numbers of images and image tags differ, or the prompt
                is longer than the context.
        """
        places = [number for number, token in enumerate(ids) if token == IMAGE_ID]
        if len(places) != len(images):
            raise PromptError(
                f"the prompt has {len(places)} <image> tags for {len(images)} images; "
                "write one for each"
            )
        length = len(ids) - len(places) + images.shape[0] * images.shape[1]
        if length >= self.config.context:
            raise PromptError(
                f"the prompt takes {length} of {self.config.context} tokens, which "
                "leaves none for an answer; shorten the text or give fewer frames"
            )
        known = on_device([max(token, 0) for token in ids], torch.int64, self.device)
        text = self.llm.model.embed_tokens(known)
        parts, start = [], 0
        for place, tokens in zip(places, images, strict=True):
            parts += [text[start:place], tokens]
            start = place + 1
        return torch.cat([*parts, text[start:]])

    def engine(self, rows: int) -> Engine:
        """Makes an engine with a number of rows."""
        weight = self.llm.model.layers[0].mlp.up_proj.weight
        return Engine(
            self.llm,
            frozenset({self.tokenizer.eos}),
            rows,
            prefill_tokens=PREFILL_TOKENS.get(self.device.type, 1),
            # bitsandbytes' kernels wait for the device, which graphs cannot.
            graphs=self.device.type == "cuda" and weight.is_floating_point(),
        )

    def rows_that_fit(self, prompt_tokens: int, at_most: int) -> int:
        """Returns the number of rows that the free memory allows.

        Args:
            prompt_tokens: Number of tokens of prompt and answer together.
            at_most: Maximum number of rows, even where more would fit.
        """
        row = row_bytes(self.config.llm, prompt_tokens, self.dtype)
        return rows_on(self.device, row, at_most)

    def new_tokens(self, prompt: Tensor, wanted: int) -> int:
        """Returns the length an answer may have: wanted, or what the context leaves."""
        return max(1, min(wanted, self.config.context - len(prompt)))


def locate(path: str | Path) -> Path:
    """Returns the folder of a checkpoint, downloading a published one.

    Raises:
        LicenseError: When the weights must be downloaded and their license has not
            been accepted.
        WeightsError: When it is neither a folder nor a published checkpoint.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(path).count("/") != 1:
        raise WeightsError(
            f"{path} is no folder; name a DAM checkpoint or nvidia/DAM-3B, "
            "nvidia/DAM-3B-Video"
        )
    return assets.fetch(str(path))


def _unused_layer(config: DAMConfig, stem: str) -> Callable[[str], bool]:
    """Returns whether a tensor is of a layer after the selected hidden state."""
    beyond = range(config.used_layers, config.vision.layers)
    return lambda name: name.startswith(tuple(f"{stem}{n}." for n in beyond))


def _unused_in_tower(config: DAMConfig) -> Callable[[str], bool]:
    layer = _unused_layer(config, "vision_model.encoder.layers.")
    heads = ("vision_model.head.", "vision_model.post_layernorm.")
    return lambda name: (
        layer(name)
        or name.startswith(heads)
        or name.endswith("embeddings.position_ids")
    )
