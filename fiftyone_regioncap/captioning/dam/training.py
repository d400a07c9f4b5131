"""Training of DAM: what trains, inputs and labels, and the loss.

The authors published no training. What follows from their inference code is exact:
gates that start at zero, the mask's embedding, the tokens of images without a label.
What trains by default, and how fast, is a choice for small data sets.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from fiftyone_regioncap.captioning.dam.captioner import (
    DamCaptioner,
    DamVideoCaptioner,
)
from fiftyone_regioncap.captioning.dam.config import (
    ADAPTERS,
    LLM,
    PROJECTOR,
    VISION,
)
from fiftyone_regioncap.captioning.dam.configuration import (
    DamOptions,
    DamTrainingOptions,
)
from fiftyone_regioncap.captioning.dam.model import DAM, locate
from fiftyone_regioncap.captioning.dam.prompts import VIDEO_FRAMES
from fiftyone_regioncap.captioning.dam.sizes import (
    ANSWER,
    PROMPT_WORDS,
    config_of,
    empty_dam,
)
from fiftyone_regioncap.captioning.dam.tokenizer import IMAGE_ID
from fiftyone_regioncap.captioning.dam.vision import FocalEncoder, Projector
from fiftyone_regioncap.captioning.merging import best_frame
from fiftyone_regioncap.captioning.trainable import (
    IGNORED,
    Inputs,
    Recipe,
    TrainingDefaults,
    TrainingNetwork,
    TrainingText,
    add_lora,
    merged_tensors,
    next_tokens,
    pad_rows,
    token_loss,
)
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.saving import rewrite

_PREFIXES = {VISION: "vision_model.", ADAPTERS: "context_provider_module."}


class DamNetwork(TrainingNetwork):
    """The loss of answers, through the modules of a loaded DAM.

    Args:
        dam: Loaded DAM model; its modules are shared.
    """

    def __init__(self, dam: DAM) -> None:
        super().__init__()
        self.dam = dam
        self.encoder: FocalEncoder = dam.encoder
        self.projector: Projector = dam.projector
        self.llm: LlamaForCausalLM = dam.llm

    def forward(
        self,
        views: Tensor,
        distinct: Tensor,
        ids: Sequence[Sequence[int]],
        counts: Sequence[int],
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Computes the loss of a batch.

        Args:
            views: Full and crop views of all images, (T, 8, S, S), uint8 or normalized.
            distinct: Whether crop and full view differ, bool (T,).
            ids: Token ids of prompt and answer, with -200 for each image.
            counts: Number of images of each sample; T in all.
            labels: Token to predict at each place, int64 (B, L).
            num_items_in_batch: See :class:`Trainable`.
        """
        images = self.dam.encode(views, distinct.cpu()).split(list(counts))
        rows = [
            self.dam.embed(row, some) for row, some in zip(ids, images, strict=True)
        ]
        # What is padded lies right of every label: no attention mask is needed.
        embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = self.llm.model(
            inputs_embeds=embeddings, use_cache=False
        ).last_hidden_state
        spoken = labels != IGNORED
        logits = self.llm.lm_head(hidden[spoken])
        return {"loss": token_loss(logits, labels[spoken], num_items_in_batch)}


class DamTraining(Recipe):
    """Trains DAM on regions of images, or on one frame of each track.

    Args:
        captioner: Captioner whose model is trained.
        base: Folder of its checkpoint.
        options: What trains, and the prompts.
    """

    captioner_class = DamCaptioner
    captioner_options = DamOptions
    frames = 1
    network: DamNetwork
    _captioner: DamCaptioner

    def __init__(
        self,
        captioner: DamCaptioner,
        base: Path,
        options: DamTrainingOptions | None = None,
    ) -> None:
        options = options or DamTrainingOptions()
        self._captioner, self._options, self.base = captioner, options, base
        self._dam = captioner.dam
        network = self.network = DamNetwork(captioner.dam)
        if options.fresh_context:
            renew_context(network)
        everything = options.stage == "everything"
        network.requires_grad_(everything)
        if options.stage in ("lora", "both"):
            add_lora(network.llm, options)
        if options.stage in ("adapters", "both"):
            for module in (
                network.encoder.adapters,
                network.encoder.tower.embeddings.mask_patch_embedding,
                network.projector,
            ):
                module.requires_grad_(True)
            # Tower and adapters add to the same tokens: one number format for both.
            network.encoder.float()
        self.defaults = TrainingDefaults(
            learning_rate={"everything": 1e-5, "adapters": 5e-5}.get(
                options.stage, 1e-4
            ),
            # Beside LoRA, which wants a higher rate than weights that were trained.
            rates={"encoder.": 0.5, "projector.": 0.5}
            if options.stage == "both"
            else {},
        )
        self.notes = (
            "The authors of DAM published no training: this recipe is this package's.",
        )

    @classmethod
    def checkpoint(cls, weights: str | Path, captioner: DamCaptioner) -> Path:
        """Returns the folder of the checkpoint, or of an adapter."""
        return locate(weights)

    @classmethod
    def without_weights(
        cls, weights: str | None, dtype: torch.dtype, options: DamTrainingOptions
    ) -> tuple[TrainingNetwork, Inputs]:
        """Returns a network on the meta device, and a batch; see :class:`Recipe`."""
        config, _ = config_of(weights)
        captioner: Any = SimpleNamespace(dam=empty_dam(config, dtype))
        recipe = cls(captioner, Path(), options)
        recipe.network.to(dtype)
        side, images = config.image.size, cls.frames
        asked = PROMPT_WORDS + images * config.tokens_per_image
        sample = {
            "views": torch.empty(
                images, 8, side, side, dtype=torch.uint8, device="meta"
            ),
            "distinct": torch.ones(images, dtype=torch.bool),
            "ids": [0] * PROMPT_WORDS + [IMAGE_ID] * images + [0] * ANSWER,
            "labels": [IGNORED] * asked + [0] * ANSWER,
        }
        return recipe.network, recipe.collate([sample])

    def encode(
        self, clip: RegionClip, text: TrainingText, draw: random.Random
    ) -> Inputs:
        """Makes views, prompt and answer of a sample; see :class:`Trainable`."""
        options = self._options
        if options.image_share and draw.random() < options.image_share:
            best = best_frame(clip)
            if best is not None:
                clip = replace(
                    clip, frames=[clip.frames[best]], masks=[clip.masks[best]]
                )
        prepared = self._captioner.prepare(clip, draw.choice(options.prompts))
        ids, labels = self.answered(prepared.query, text.caption)
        return {
            "views": prepared.views,
            "distinct": prepared.distinct,
            "ids": ids,
            "labels": labels,
        }

    def answered(self, query: str, answer: str) -> tuple[list[int], list[int]]:
        """Returns the ids of a query and its answer, and the label at each place.

        Args:
            query: Prompt with an image tag for each image.
            answer: Text of the answer; the end token is added.

        Raises:
            PromptError: When both are longer than the context.
        """
        asked = self._dam.prompt_ids(query)
        said = [
            *self._dam.tokenizer.encode(answer.strip()),
            self._dam.tokenizer.eos,
        ]
        more = asked.count(IMAGE_ID) * (self._dam.config.tokens_per_image - 1)
        length = len(asked) + more + len(said)
        if length > self._dam.config.context:
            raise PromptError(
                f"prompt and caption take {length} tokens, the model reads "
                f"{self._dam.config.context}; shorten the caption"
            )
        return [*asked, *said], [*[IGNORED] * (len(asked) + more), *said]

    def collate(self, samples: Sequence[Inputs]) -> Inputs:
        """Makes a batch; see :class:`Trainable`."""
        return {
            "views": torch.cat([sample["views"] for sample in samples]),
            "distinct": torch.cat([sample["distinct"] for sample in samples]),
            "ids": [sample["ids"] for sample in samples],
            "counts": [len(sample["views"]) for sample in samples],
            "labels": pad_rows(
                [next_tokens(sample["labels"]) for sample in samples], IGNORED
            ),
        }

    def write_merged(self, folder: Path) -> None:
        """Writes the whole checkpoint with the trained weights."""
        parts: dict[str, nn.Module] = {
            VISION: self.network.encoder.tower,
            ADAPTERS: self.network.encoder.adapters,
            PROJECTOR: self.network.projector,
            LLM: self.network.llm,
        }
        rewrite(self.base, folder, lambda name, tensor: tensor)
        for part, module in parts.items():
            prefix = _PREFIXES.get(part, "")
            found = {prefix + name: t for name, t in merged_tensors(module)}
            # Layers that no caption depends on are not in the module.
            rewrite(self.base / part, folder / part, partial(_known, found))


class DamVideoTraining(DamTraining):
    """Trains the checkpoint for images and videos, tracks as 8 frames."""

    captioner_class = DamVideoCaptioner
    frames = VIDEO_FRAMES


def _known(found: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    return found.get(name, tensor)


@torch.no_grad()
def renew_context(network: DamNetwork) -> None:
    """Gives the model new adapters that have no effect yet.

    Attention and MLPs are drawn as SigLIP's are, biases are zero; so are gates and the
    embedding of the mask: the model is its base until they move.
    """
    for name, parameter in network.encoder.adapters.named_parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
        elif "layer_norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.zeros_(parameter)
    close_gates(network)


@torch.no_grad()
def close_gates(network: DamNetwork) -> None:
    """Sets all gates and the embedding of the mask to zero."""
    for name, parameter in network.encoder.adapters.named_parameters():
        if name.endswith("_factor"):
            parameter.zero_()
    for parameter in network.encoder.tower.embeddings.mask_patch_embedding.parameters():
        parameter.zero_()
