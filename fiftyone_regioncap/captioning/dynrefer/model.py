"""DynRefer (arXiv 2405.16071) on transformers' BLIP-2, T5 and CLIP text modules.

Each region comes as several square pictures of itself with rising context. A frozen
EVA-CLIP ViT reads every picture; RoIAlign brings the region out of each; the wider
ones are aligned to the region's own; all are fused on channels, and BLIP-2's Q-Former
makes a few tokens of them. Two query decoders and a T5 read those tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    GenerationConfig,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from fiftyone_regioncap.captioning.dynrefer.deformable import DeformableAlign
from fiftyone_regioncap.captioning.dynrefer.heads import HeadSizes, QueryHead
from fiftyone_regioncap.captioning.dynrefer.roialign import roi_align
from fiftyone_regioncap.models.devices import choose_dtype

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's normalization of RGB in [0, 1]."""

REGIONS_AT_ONCE = {"cuda": 32, "cpu": 2}
"""Regions whose views go through the ViT together, where memory allows.

More don't make a CPU faster.
"""

VISION_NORM_EPS = 1e-5
"""Of the layer norm after the tower; transformers gives it the tower's own 1e-6."""


@dataclass(frozen=True)
class DynReferConfig:
    """Sizes of all parts; the defaults of the transformers configs are the published.

    Attributes:
        vision: Sizes of the ViT.
        qformer: Sizes of the Q-Former; ``encoder_hidden_size`` is the ViT's width.
        language: Sizes of the T5, whose activation is exact GELU whatever they say.
        head: Sizes of the two query decoders.
        views: Number of views of a region.
        queries: Number of tokens that the Q-Former makes.
    """

    vision: Blip2VisionConfig
    qformer: Blip2QFormerConfig
    language: T5Config
    head: HeadSizes
    views: int = 3
    queries: int = 32


@dataclass(frozen=True)
class Decoding:
    """Sets how captions are generated; the defaults are those of the authors' demo.

    Attributes:
        num_beams: Number of beams; there is no sampling.
        max_new_tokens: Maximum length of a caption in tokens.
        min_length: Minimum length of a caption in tokens.
        length_penalty: Exponent of the length that a beam's score is divided by.
        repetition_penalty: Factor on the log-probabilities of tokens that came already.
    """

    num_beams: int = 5
    max_new_tokens: int = 30
    min_length: int = 1
    length_penalty: float = 0.0
    repetition_penalty: float = 1.5

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Decoding:
        """Takes the values of a configuration, and the demo's for the rest."""
        defaults: dict[str, Any] = {f.name: f.default for f in fields(cls)}
        return cls(
            **{
                name: type(default)(said.get(name, default))
                for name, default in defaults.items()
            }
        )


@dataclass(frozen=True)
class Generated:
    """Captions as tokens.

    Attributes:
        sequences: Token ids from the start token on, int64 (B, L), padded with the pad
            token.
        scores: Scores of the chosen beams as beam search ranks them, float (B,):
            penalized log-probabilities. Without beams, the log-probability of the
            caption.
        probabilities: Probability of each generated token without penalties, float (B,
            L - 1); 1 at padding.
    """

    sequences: Tensor
    scores: Tensor
    probabilities: Tensor


class DynReferModel(nn.Module):
    """All networks but the text tower, whose work is done once per list of names.

    Attributes:
        mixed: Whether to run as the authors do on GPUs: the ViT under half-precision
            autocast, heads and T5 under bfloat16, everything between in float32.
    """

    def __init__(self, config: DynReferConfig) -> None:
        super().__init__()
        self.config = config
        self.mixed = False
        config.language.dense_act_fn = "gelu"
        width, tokens = config.vision.hidden_size, config.qformer.hidden_size
        self.vision = Blip2VisionModel(config.vision)
        self.vision.post_layernorm.eps = VISION_NORM_EPS
        self.align = DeformableAlign(width)
        self.fusion = nn.Sequential(
            nn.Linear(config.views * width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.query_tokens = nn.Parameter(torch.zeros(1, config.queries, tokens))
        self.qformer = Blip2QFormerModel(config.qformer)
        self.tags, self.attributes = (
            QueryHead(tokens, config.head, normalize=normalize)
            for normalize in (False, True)
        )
        self.language = T5ForConditionalGeneration(config.language)
        if not getattr(config.language, "scale_decoder_outputs", True):
            # transformers shares the embeddings with the output layer even where the
            # config says that it has weights of its own.
            shared = self.language.shared.weight
            self.language.lm_head.weight = nn.Parameter(shared.detach().clone())
        self.language_projection = nn.Linear(tokens, config.language.d_model)
        self.control_memory = nn.Parameter(torch.zeros(config.language.d_model))

    @property
    def device(self) -> torch.device:
        """Returns the device of the weights."""
        return self.query_tokens.device

    @property
    def picture_size(self) -> int:
        """Returns the side of the square images in pixels."""
        size = self.config.vision.image_size
        assert isinstance(size, int)
        return size

    def region_tokens(self, pictures: Tensor, rois: Tensor) -> Tensor:
        """Returns the Q-Former's tokens of each region: float32 (S, queries, width).

        Args:
            pictures: Views of each region, uint8 (S, V, size, size, 3), on any device.
            rois: Boxes of the region in each view in pixels, float32 (S, V, 4), on any
                device.
        """
        features = self.encode(self.normalize(pictures.flatten(0, 1)))
        features = features.unflatten(0, rois.shape[:2])
        return self.query(self.fuse(features, rois.to(self.device)))

    def normalize(self, pictures: Tensor) -> Tensor:
        """Normalizes uint8 (N, size, size, 3) to float32 (N, 3, size, size)."""
        pixels = pictures.permute(0, 3, 1, 2).to(self.device, torch.float32) / 255
        mean = torch.tensor(PIXEL_MEAN, device=self.device).view(3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=self.device).view(3, 1, 1)
        return (pixels - mean) / std

    def encode(self, pixels: Tensor) -> Tensor:
        """Returns the ViT's tokens, class token first: float32 (N, 1 + cells, C).

        Args:
            pixels: Normalized images, float32 (N, 3, size, size).
        """
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with self.autocast(half):
            return self.vision(pixels).last_hidden_state.float()

    def fuse(self, features: Tensor, rois: Tensor) -> Tensor:
        """Brings the views of each region together: float32 (S, 1 + cells, C).

        Args:
            features: Features from :meth:`encode`, float32 (S, V, 1 + cells, C).
            rois: Boxes of the regions in pixels of the views, float32 (S, V, 4).
        """
        hidden = self.fusion[1](self.fusion[0](self.fusion_input(features, rois)))
        return self.fusion[2](hidden)

    def fusion_input(self, features: Tensor, rois: Tensor) -> Tensor:
        """Returns aligned views joined on channels: float32 (S, 1 + cells, V * C)."""
        regions, views = rois.shape[:2]
        own, *wider = (
            self.roi_features(features.flatten(0, 1), rois.flatten(0, 1))
            .unflatten(0, (regions, views))
            .unbind(dim=1)
        )
        # One view after the other: all at once would hold V - 1 times the samples.
        aligned = [own, *(self.align(view, own) for view in wider)]
        cells = torch.stack(aligned, dim=1).flatten(3).transpose(2, 3)
        tokens = torch.cat([features[:, :, :1], cells], dim=2)
        return tokens.transpose(1, 2).flatten(2)

    def roi_features(self, features: Tensor, rois: Tensor) -> Tensor:
        """Returns the region out of each map: float32 (N, C, side, side).

        Args:
            features: Features of the views, float32 (N, 1 + cells, C).
            rois: Boxes of the regions in pixels of the views, float32 (N, 4).
        """
        patch = self.config.vision.patch_size
        assert isinstance(patch, int)
        side = self.picture_size // patch
        maps = features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return roi_align(maps, rois, output=side, scale=1 / patch)

    def query(self, fused: Tensor) -> Tensor:
        """Returns the Q-Former's tokens, float32 (S, queries, width)."""
        return self.qformer(
            query_embeds=self.query_tokens.expand(len(fused), -1, -1),
            encoder_hidden_states=fused,
        ).last_hidden_state

    def tag_logits(self, tokens: Tensor, texts: Tensor) -> Tensor:
        """Returns raw logits of tags, float (S, N); ``texts`` are their embeddings."""
        with self.autocast(torch.bfloat16):
            return self.tags(tokens, texts)

    def match_logits(self, tokens: Tensor, texts: Tensor) -> Tensor:
        """Returns raw logits of attribute and class prompts, float (S, N)."""
        with self.autocast(torch.bfloat16):
            return self.attributes(tokens, texts)

    def prompt(
        self, tokens: Tensor, control_ids: Tensor, control_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the T5 encoder's input: the region's tokens, then the control words.

        Args:
            tokens: Region tokens, float32 (B, queries, width).
            control_ids: Token ids of the control words, int64 (B, K).
            control_mask: Attention mask of the control words, int64 (B, K), 0 at
                padding.

        Returns:
            Embeddings (B, queries + K, d) and the mask over them.
        """
        words = self.language.get_input_embeddings()(control_ids) + self.control_memory
        region = self.language_projection(tokens)
        seen = control_mask.new_ones(region.shape[:2])
        return torch.cat([region, words], 1), torch.cat([seen, control_mask], 1)

    def generate(
        self,
        tokens: Tensor,
        control_ids: Tensor,
        control_mask: Tensor,
        decoding: Decoding,
    ) -> Generated:
        """Writes a caption for each region, by beam search.

        Args:
            tokens: Region tokens, float32 (B, queries, width).
            control_ids: Token ids of the control words, int64 (B, K).
            control_mask: Attention mask of the control words, int64 (B, K), 0 at
                padding.
            decoding: Settings of beam search.
        """
        t5 = self.language.config
        with self.autocast(torch.bfloat16):
            embeddings, mask = self.prompt(tokens, control_ids, control_mask)
            encoded = self.language.encoder(
                inputs_embeds=embeddings, attention_mask=mask
            ).last_hidden_state
            beams: Any = self.language.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                attention_mask=mask,
                generation_config=GenerationConfig(
                    do_sample=False,
                    num_beams=decoding.num_beams,
                    # Captions that don't end by themselves are scored as if they did,
                    # one token later, as beam search did when this was published.
                    max_new_tokens=decoding.max_new_tokens + 1,
                    forced_eos_token_id=t5.eos_token_id,
                    min_length=decoding.min_length,
                    length_penalty=decoding.length_penalty,
                    repetition_penalty=decoding.repetition_penalty,
                    pad_token_id=t5.pad_token_id,
                    eos_token_id=t5.eos_token_id,
                    decoder_start_token_id=t5.decoder_start_token_id,
                    output_scores=True,
                    return_dict_in_generate=True,
                ),
            )
            sequences = beams.sequences[:, : decoding.max_new_tokens + 1]
            # Beam search fills up with end tokens where the pad token is 0.
            is_end = (sequences == t5.eos_token_id).int()
            over = is_end.cumsum(dim=1) - is_end > 0
            sequences = sequences.masked_fill(over, t5.pad_token_id)
            logits = self.language(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                attention_mask=mask,
                decoder_input_ids=sequences[:, :-1],
            ).logits
        chosen = logits.float().softmax(-1).gather(2, sequences[:, 1:, None])
        probabilities = chosen.squeeze(2).masked_fill(over[:, 1:], 1.0)
        scores = getattr(beams, "sequences_scores", None)
        if scores is None:
            scores = probabilities.log().sum(dim=1)
        return Generated(sequences, scores, probabilities)

    @contextlib.contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        """Computes in another precision where the model is :attr:`mixed`."""
        if not self.mixed:
            yield
            return
        with torch.autocast(self.device.type, dtype):
            yield


def place(
    model: DynReferModel, device: torch.device, dtype: str | None
) -> DynReferModel:
    """Moves a model to a device and chooses its precision.

    Args:
        model: A model in float32.
        device: Device to move it to.
        dtype: ``"float32"``, ``"bfloat16"`` for the authors' mixed precision, or None
            for what suits the device. Half precision is refused: the T5 overflows in
            it.

    Raises:
        BackendError: If there is no such precision.
    """
    choices = ("float32", "bfloat16")
    if choose_dtype(dtype, device, choices) is torch.bfloat16:
        model.mixed = True
        # Before the move: the T5 is two thirds of the model.
        model.language.to(torch.bfloat16)
    return model.to(device)
