"""Training of DynRefer (arXiv 2405.16071): three losses on stochastic nested views.

What trains is what the authors' checkpoints hold: alignment, fusion, Q-Former, both
heads, the projection to the T5, and the memory that is added to control words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fiftyone_regioncap.captioning.checking import check_clip
from fiftyone_regioncap.captioning.dynrefer import sizes
from fiftyone_regioncap.captioning.dynrefer.captioner import (
    DynReferCaptioner,
    stack_views,
)
from fiftyone_regioncap.captioning.dynrefer.configuration import (
    DynReferOptions,
    DynReferTrainingOptions,
)
from fiftyone_regioncap.captioning.dynrefer.controls import (
    clean_caption,
    drawn_controls,
    noun_phrases,
)
from fiftyone_regioncap.captioning.dynrefer.heads import QueryHead, QueryLayer
from fiftyone_regioncap.captioning.dynrefer.model import DynReferModel
from fiftyone_regioncap.captioning.dynrefer.weights import Files, locate, published
from fiftyone_regioncap.captioning.merging import best_frame
from fiftyone_regioncap.captioning.trainable import (
    IGNORED,
    Inputs,
    Recipe,
    TrainingDefaults,
    TrainingNetwork,
    TrainingText,
    token_loss,
    trained,
)
from fiftyone_regioncap.captioning.views import CANDIDATES, nested_views
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.loading import read_tensors
from fiftyone_regioncap.models.saving import copy, save_tensors

TRAINED = (
    "align",
    "fusion",
    "control_memory",
    "tags",
    "attributes",
    "qformer",
    "language_projection",
)
"""Parts of the model that train; ViT, query tokens, text tower and T5 do not."""

FOCUS = 7
"""Exponent of the focusing factor on tags that a region does not have."""

MARGIN = 0.05
"""Probability up to which such tags cost nothing."""


class DynReferNetwork(TrainingNetwork):
    """The three losses, through DynRefer's networks.

    Tags and pairs are summed over the batch of a process, as the authors do, so that
    losses are means of batches, and not of tokens, over accumulated steps.

    Args:
        model: DynRefer's networks; they are shared.
        text_tower: Embeds texts; it does not train.
        tag_texts: Embeddings of all tags, (T, E).
        options: Weights of the losses.
    """

    accepts_loss_kwargs = False

    def __init__(
        self,
        model: DynReferModel,
        text_tower: Callable[[Sequence[str]], Tensor],
        tag_texts: Tensor,
        options: DynReferTrainingOptions,
    ) -> None:
        super().__init__()
        self.model = model
        self._embed_texts = text_tower
        self._tag_texts = tag_texts
        self._options = options

    def train(self, mode: bool = True) -> DynReferNetwork:
        """Sets the mode; the ViT stays in eval mode, and the T5, though frozen, not."""
        nn.Module.train(self, mode)
        self.model.vision.eval()
        return self

    def forward(
        self,
        pictures: Tensor,
        rois: Tensor,
        captions: Sequence[str],
        control_ids: Tensor,
        control_mask: Tensor,
        labels: Tensor,
        tag_labels: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            pictures: Views of each region, uint8 (S, V, size, size, 3).
            rois: Boxes of the region in each view, float32 (S, V, 4).
            captions: Captions, cleaned.
            control_ids: Token ids of the control words, int64 (S, K).
            control_mask: Their attention mask, int64 (S, K).
            labels: Token ids of the captions, int64 (S, L).
            tag_labels: Whether each region has each tag, (S, T), 0 or 1.

        Returns:
            The total and the weighted ``loss_llm``, ``loss_tag`` and ``loss_att``.
        """
        tokens = self.model.region_tokens(pictures, rois)
        return self.losses(
            tokens, captions, control_ids, control_mask, labels, tag_labels
        )

    def losses(
        self,
        tokens: Tensor,
        captions: Sequence[str],
        control_ids: Tensor,
        control_mask: Tensor,
        labels: Tensor,
        tag_labels: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the losses from the tokens of the regions, (S, queries, width)."""
        options = self._options
        found: dict[str, Tensor] = {}
        if options.language_weight:
            loss = self.language_loss(tokens, control_ids, control_mask, labels)
            found["loss_llm"] = options.language_weight * loss
        if options.tag_weight:
            logits = self.model.tag_logits(tokens, self._tag_texts)
            found["loss_tag"] = options.tag_weight * asymmetric_loss(logits, tag_labels)
        if options.match_weight:
            texts = self._embed_texts(captions)
            with self.model.autocast(torch.bfloat16):
                loss = pair_loss(self.model.attributes, tokens, texts)
            found["loss_att"] = options.match_weight * loss
        return {"loss": torch.stack(list(found.values())).sum(), **found}

    def language_loss(
        self,
        tokens: Tensor,
        control_ids: Tensor,
        control_mask: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Computes the mean cross-entropy of the captions' tokens."""
        language = self.model.language
        with self.model.autocast(torch.bfloat16):
            embeddings, mask = self.model.prompt(tokens, control_ids, control_mask)
            logits = language(
                inputs_embeds=embeddings,
                attention_mask=mask,
                decoder_input_ids=language._shift_right(labels),
                decoder_attention_mask=(labels != IGNORED).long(),
                use_cache=False,
            ).logits
        return token_loss(logits, labels, None)


def asymmetric_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    negative: float = FOCUS,
    positive: float = 0,
    margin: float = MARGIN,
    least: float = 1e-8,
) -> Tensor:
    """Computes the asymmetric loss of tags (arXiv 2009.14119), summed over all of them.

    Args:
        logits: Scores of tags, (S, T).
        labels: Whether a region has a tag, (S, T), 0 or 1.
        negative: Exponent of the focusing factor on tags that are absent.
        positive: Exponent of the focusing factor on tags that are there.
        margin: Probability up to which tags that are absent cost nothing.
        least: Lower bound of probabilities in the logarithm.
    """
    present = logits.float().sigmoid()
    absent = 1 - present
    if margin:
        absent = (absent + margin).clamp(max=1)
    there = labels.to(present.dtype)
    likely = there * present.clamp(min=least).log()
    unlikely = (1 - there) * absent.clamp(min=least).log()
    # The focusing factor takes no part in the gradient.
    with torch.no_grad():
        right = present * there + absent * (1 - there)
        focus = (1 - right) ** (positive * there + negative * (1 - there))
    return -((likely + unlikely) * focus).sum()


def pair_loss(head: QueryHead, tokens: Tensor, texts: Tensor) -> Tensor:
    """Computes the sigmoid loss of matching regions and captions.

    Each region is compared with the captions of all processes, and each caption with
    their regions; what comes from other processes, and the process's own part of what
    was gathered, carries no gradient. The same caption twice counts as no match.

    Args:
        head: The head that scores attributes.
        tokens: Tokens of this process's regions, (B, queries, width).
        texts: Text embeddings of their captions, (B, E).

    Returns:
        The mean of both directions, per region of this process.
    """
    size = len(tokens)
    regions, captions = head.vision_proj(tokens), head.text_proj(texts)
    if not (dist.is_available() and dist.is_initialized()):
        match = 2 * torch.eye(size, device=tokens.device) - 1
        return -F.logsigmoid(match * scaled(head, regions, captions)).sum() / size
    first = dist.get_rank() * size
    match = torch.full((size, size * dist.get_world_size()), -1.0).to(tokens.device)
    match[range(size), range(first, first + size)] = 1
    of_regions = scaled(head, regions, _gathered(captions))
    of_captions = scaled(head, _gathered(regions), captions).T
    losses = [-F.logsigmoid(match * one).sum() for one in (of_regions, of_captions)]
    return (losses[0] + losses[1]) / (2 * size)


def scaled(head: QueryHead, regions: Tensor, texts: Tensor) -> Tensor:
    """Returns logits of projected pairs as they were trained, (regions, texts)."""
    scores = head.compare(regions, texts).float()
    return scores * head.temperature.exp() + head.bias


def _gathered(tensor: Tensor) -> Tensor:
    parts = [torch.zeros_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class DynReferTraining(Recipe):
    """Trains DynRefer on the frame of each region where it shows best.

    Args:
        captioner: Captioner whose model is trained; it must know its tags.
        files: Files of its checkpoint.
        options: Weights of the losses, and how samples are made.
    """

    captioner_class = DynReferCaptioner
    captioner_options = DynReferOptions
    frames = 4
    _captioner: DynReferCaptioner

    def __init__(
        self,
        captioner: DynReferCaptioner,
        files: Files,
        options: DynReferTrainingOptions | None = None,
    ) -> None:
        self._captioner, self._files = captioner, files
        self._options = options = options or DynReferTrainingOptions()
        self.base = files.folder
        self._model = model = captioner.model
        tag_texts = captioner.tag_texts
        assert tag_texts is not None
        self.network = DynReferNetwork(model, captioner.text_tower, tag_texts, options)
        self.network.requires_grad_(False)
        for name in TRAINED:
            getattr(model, name).requires_grad_(True)
        set_dropout(model, options.dropout)
        self.defaults = TrainingDefaults(
            learning_rate=1e-4,
            weight_decay=0.05,
            max_grad_norm=0.0,
        )

    @classmethod
    def captioning(cls, options: DynReferTrainingOptions | None) -> Mapping[str, Any]:
        """Leaves out what isn't learned."""
        return {"tasks": ("caption", "tags")}

    @classmethod
    def checkpoint(cls, weights: str | Path, captioner: DynReferCaptioner) -> Files:
        """Returns the files of the checkpoint."""
        return locate(Path(weights).expanduser())

    @classmethod
    def without_weights(
        cls, weights: str | None, dtype: torch.dtype, options: DynReferTrainingOptions
    ) -> tuple[TrainingNetwork, Inputs]:
        """Returns a network on the meta device, and a batch; see :class:`Recipe`."""
        config = sizes.published()
        with torch.device("meta"):
            model = DynReferModel(config)
            texts = torch.empty(sizes.TAGS, config.head.text_width)
            side, views = model.picture_size, config.views
            controls = torch.ones(1, sizes.CONTROLS, dtype=torch.int64)
            batch = {
                "pictures": torch.empty(1, views, side, side, 3, dtype=torch.uint8),
                "rois": torch.empty(1, views, 4),
                "captions": [""],
                "control_ids": controls,
                "control_mask": controls,
                "labels": torch.zeros(1, sizes.ANSWER, dtype=torch.int64),
                "tag_labels": torch.zeros(1, sizes.TAGS),
            }
        captioner: Any = SimpleNamespace(
            model=model, tag_texts=texts, text_tower=lambda captions: texts[:1]
        )
        files: Any = SimpleNamespace(folder=Path())
        network = cls(captioner, files, options).network
        for part in (model.vision, model.language):
            part.to(dtype)
        return network, batch

    def encode(
        self, clip: RegionClip, text: TrainingText, draw: random.Random
    ) -> Inputs:
        """Makes views, control words and labels of a sample; see :class:`Trainable`."""
        check_clip(clip)
        best = best_frame(clip)
        assert best is not None  # some mask has a pixel
        caption = clean_caption(text.caption)
        if not caption:
            raise PromptError(f"nothing is left of the caption {text.caption!r}")
        views = nested_views(
            clip.frames[best],
            clip.masks[best],
            contexts=drawn_contexts(draw, self._model.config.views),
            size=self._model.picture_size,
        )
        tags = self.tags_in(caption) | {
            self._tag_numbers[tag] for tag in text.tags if tag in self._tag_numbers
        }
        names = [self._captioner.tags[number] for number in sorted(tags)]
        options = self._options
        controls = drawn_controls(
            [*names, *noun_phrases(text.speech)],
            draw,
            options.no_controls,
            options.control_dropout,
        )
        return {
            "views": views,
            "caption": caption,
            "controls": controls,
            "tags": sorted(tags),
        }

    def collate(self, samples: Sequence[Inputs]) -> Inputs:
        """Makes a batch; see :class:`Trainable`."""
        pictures, rois = stack_views([sample["views"] for sample in samples])
        tokenizer = self._captioner.controls
        captions = [sample["caption"] for sample in samples]
        ids, mask = tokenizer.encode(captions)
        control_ids, control_mask = tokenizer.encode([s["controls"] for s in samples])
        tags = torch.zeros(len(samples), len(self._captioner.tags))
        for row, sample in enumerate(samples):
            tags[row, sample["tags"]] = 1
        return {
            "pictures": pictures,
            "rois": rois,
            "captions": captions,
            "control_ids": control_ids,
            "control_mask": control_mask,
            "labels": ids.masked_fill(mask == 0, IGNORED),
            "tag_labels": tags,
        }

    def tags_in(self, caption: str) -> set[int]:
        """Returns the numbers of the tags that a caption names, as whole words."""
        found = self._tag_pattern.findall(caption.lower())
        return {self._tag_numbers[name] for name in found}

    @cached_property
    def _tag_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._captioner.tags)}

    @cached_property
    def _tag_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._captioner.tags, key=len, reverse=True)
        return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b")

    def write_merged(self, folder: Path) -> None:
        """Writes the folder of the model, with the trained part as safetensors."""
        ours = {
            name.removeprefix("model."): parameter.detach()
            for name, parameter in trained(self.network).items()
        }
        for path in self.base.iterdir():
            if path.stem != self._files.trained.stem:
                copy(path, folder / path.name)
        written = {
            name: ours.get(place, tensor)
            for name, place, tensor in published(read_tensors(self._files.trained))
        }
        name = self._files.trained.with_suffix(".safetensors").name
        save_tensors(folder / name, written)


def drawn_contexts(draw: random.Random, views: int) -> tuple[float, ...]:
    """Draws the contexts of a region's views: 0 first, the others each at most once."""
    others = draw.sample(range(len(CANDIDATES)), views - 1)
    return (0.0, *(CANDIDATES[place] for place in others))


def set_dropout(model: DynReferModel, probability: float) -> None:
    """Sets the dropout of Q-Former, heads and T5; it only acts in training."""
    for part in (model.qformer, model.tags, model.attributes, model.language):
        for module in part.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
            elif isinstance(module, QueryLayer) or isinstance(
                getattr(module, "dropout", None), float
            ):
                module.dropout = probability
            elif hasattr(module, "attention_dropout"):
                module.attention_dropout = probability
