"""Training of URECA (arXiv 2504.05305): the mask's encoder first, then LoRA.

Stage 1 trains the mask encoder and its projection, stage 2 LoRA on the language model;
everything else stays as it is.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from fiftyone_regioncap.captioning.checking import check_clip
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
from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner, checked
from fiftyone_regioncap.captioning.ureca.configuration import (
    UrecaOptions,
    UrecaTrainingOptions,
)
from fiftyone_regioncap.captioning.ureca.model import UrecaModel
from fiftyone_regioncap.captioning.ureca.prompts import (
    END,
    IMAGE_TOKEN,
    MASK_TOKEN,
    PROMPTS,
    TOKENS,
    conversation,
)
from fiftyone_regioncap.captioning.ureca.sizes import ANSWER, WORDS, read_config
from fiftyone_regioncap.captioning.ureca.tokenizer import tokenizer_files
from fiftyone_regioncap.captioning.ureca.weights import merge_lora, publish
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.loading import read_json, read_tensors
from fiftyone_regioncap.models.saving import copy, rewrite, save_tensors

HEADER = "<|im_start|>assistant\n"
"""Begins an answer, and is not learned."""

JPEG_QUALITIES = (75, 100)
"""The authors' augmentation encodes tiles with a quality in this range."""


class UrecaNetwork(TrainingNetwork):
    """The loss of answers, through URECA's networks.

    Args:
        model: URECA's networks; they are shared.
        places: Ids of the tokens that stand for the image and for the mask.
    """

    def __init__(self, model: UrecaModel, places: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self._places = places

    def forward(
        self,
        tiles: Tensor,
        masks: Tensor,
        ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Computes the loss of a batch.

        Args:
            tiles: Tiles of all images, uint8 (T, S, S, 3).
            masks: Tiles of all masks, uint8 (M, S, S).
            ids: Token ids of prompts and answers, int64 (B, L), padded on the right.
            labels: Token to predict at each place, int64 (B, L).
            attention_mask: Tokens that are attended to, (B, L); None for all, as what
                is padded lies right of every label.
            position_ids: Position of each token, int64 (B, L); None counts them.
            num_items_in_batch: See :class:`Trainable`.
        """
        image, mask = self._places
        features = (
            (image, self.model.image_tokens(tiles)),
            (mask, self.model.mask_tokens(masks)),
        )
        embeddings = self.model.embed(ids.flatten(), features)
        hidden = self.model.llm.model(
            inputs_embeds=embeddings.unflatten(0, ids.shape),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        spoken = labels != IGNORED
        logits = self.model.llm.lm_head(hidden[spoken])
        return {"loss": token_loss(logits, labels[spoken], num_items_in_batch)}


class UrecaTraining(Recipe):
    """Trains URECA on the frame of each region where it shows best.

    Args:
        captioner: Captioner whose model is trained.
        base: Folder of its checkpoint.
        options: The stage, and how samples are made.
    """

    captioner_class = UrecaCaptioner
    captioner_options = UrecaOptions
    frames = 4
    _captioner: UrecaCaptioner

    def __init__(
        self,
        captioner: UrecaCaptioner,
        base: Path,
        options: UrecaTrainingOptions | None = None,
    ) -> None:
        self._captioner, self.base = captioner, base
        self._options = options = options or UrecaTrainingOptions()
        self._model = model = captioner.model
        self._tokenizer = captioner.tokenizer
        special = captioner.tokenizer.special
        self.network = UrecaNetwork(model, (special[IMAGE_TOKEN], special[MASK_TOKEN]))
        if options.mask_tokens is not None:
            renew_mask_encoder(model, options.mask_tokens)
        self.network.requires_grad_(False)
        first = options.stage == "masks"
        if first:
            model.mask_encoder.requires_grad_(True)
            model.mask_linear.requires_grad_(True)
        else:
            add_lora(model.llm, options)
            if model.config.family == "internlm2":
                share_fused(model.llm)
        self.defaults = TrainingDefaults(
            learning_rate=2e-4 if first else 4e-5, weight_decay=0.01
        )

    @classmethod
    def captioning(cls, options: UrecaTrainingOptions | None) -> Mapping[str, Any]:
        """Lets the captioner cut images as the training does."""
        return {"max_tiles": (options or UrecaTrainingOptions()).max_tiles}

    @classmethod
    def checkpoint(cls, weights: str | Path, captioner: UrecaCaptioner) -> Path:
        """Returns the folder of the checkpoint; of an adapter, that of its base."""
        return captioner.folder

    @classmethod
    def without_weights(
        cls, weights: str | None, dtype: torch.dtype, options: UrecaTrainingOptions
    ) -> tuple[TrainingNetwork, Inputs]:
        """Returns a network on the meta device, and a batch; see :class:`Recipe`."""
        config, _ = read_config(weights)
        with torch.device("meta"):
            model = UrecaModel(config).to(dtype)
        special = {IMAGE_TOKEN: 1, MASK_TOKEN: 2}
        captioner: Any = SimpleNamespace(
            model=model, tokenizer=SimpleNamespace(special=special)
        )
        recipe = cls(captioner, Path(), options)
        recipe.network.to(dtype)
        config = model.config
        assert config.mask_channels is not None
        tiles, side = options.max_tiles + config.thumbnail, config.tile
        asked = [1] * (tiles * config.tokens_per_tile)
        asked += [2] * (tiles * config.mask_channels) + [0] * WORDS
        pixels = torch.empty(tiles, side, side, 3, dtype=torch.uint8, device="meta")
        sample = {
            "tiles": pixels,
            "masks": pixels[..., 0],
            "ids": [*asked, *[0] * ANSWER],
            "labels": [*[IGNORED] * len(asked), *[0] * ANSWER],
        }
        return recipe.network, recipe.collate([sample])

    def encode(
        self, clip: RegionClip, text: TrainingText, draw: random.Random
    ) -> Inputs:
        """Makes tiles, prompt and answer of a sample; see :class:`Trainable`."""
        check_clip(clip)
        best = best_frame(clip)
        assert best is not None  # some mask has a pixel
        tiles = self._captioner.tiles(clip.frames[best])
        masks = self._captioner.mask_tiles(clip.masks[best])
        if self._options.jpeg:
            tiles = np.stack(
                [jpeg_encoded(tile, draw.randint(*JPEG_QUALITIES)) for tile in tiles]
            )
        name = draw.choice(self._options.prompts)
        asked = checked(PROMPTS.get(name, name))
        ids, labels = self.answered(asked, text.caption, len(tiles), len(masks))
        return {
            "tiles": torch.from_numpy(tiles),
            "masks": torch.from_numpy(masks),
            "ids": ids,
            "labels": labels,
        }

    def answered(
        self, asked: str, answer: str, tiles: int, masks: int
    ) -> tuple[list[int], list[int]]:
        """Returns the ids of a question and its answer, and the label at each place.

        Args:
            asked: Question with placeholders for image and mask.
            answer: Text of the answer; the end of the turn is added.
            tiles: Number of tiles of the image.
            masks: Number of tiles of the mask.

        Raises:
            PromptError: When the answer has special tokens, or both are too long.
        """
        taken = [token for token in TOKENS if token in answer]
        if taken:
            raise PromptError(
                f"the caption has {', '.join(taken)}, which only URECA's layout may "
                "have; edit the caption"
            )
        config, encode = self._model.config, self._tokenizer.encode
        assert config.mask_channels is not None
        text = conversation(
            asked, tiles * config.tokens_per_tile, masks * config.mask_channels
        )
        ids = encode(f"{text}{answer.strip()}{END}\n")
        # The header as it is alone: its last token may join the answer's first one.
        begins = len(encode(text.removesuffix(HEADER)))
        begins += len(encode(HEADER)) - (self._tokenizer.bos is not None)
        if len(ids) > config.context:
            raise PromptError(
                f"image, prompt and caption take {len(ids)} tokens, the model reads "
                f"{config.context}; lower max_tiles or shorten the caption"
            )
        return ids, [*[IGNORED] * begins, *ids[begins:-1], IGNORED]

    def collate(self, samples: Sequence[Inputs]) -> Inputs:
        """Makes a batch; see :class:`Trainable`."""
        ids = [sample["ids"] for sample in samples]
        batch = {
            "tiles": torch.cat([sample["tiles"] for sample in samples]),
            "masks": torch.cat([sample["masks"] for sample in samples]),
            "ids": pad_rows(ids, 0),
            "labels": pad_rows(
                [next_tokens(one["labels"]) for one in samples], IGNORED
            ),
        }
        if self._options.compat == "reference":
            # The authors take id 0 for padding, which Qwen2's "!" is as well.
            batch["attention_mask"] = (batch["ids"] != 0).long()
            batch["position_ids"] = pad_rows([range(len(row)) for row in ids], 0)
        return batch

    def write_merged(self, folder: Path) -> None:
        """Writes the whole checkpoint with the trained weights."""
        config = self._model.config
        ours = {
            name.removeprefix("model."): tensor
            for name, tensor in merged_tensors(self.network)
        }
        names = {name for name, _ in read_tensors(self.base)}
        if any(".lora_" in name for name in names):
            rewrite(self.base, folder, lambda name, tensor: tensor)
            for path in folder.glob("*.safetensors*"):
                path.unlink()
            tensors = merge_lora(read_tensors(self.base), config.lora_scale)
            named = {
                name.replace(".base_model.model", ""): publish(
                    name, tensor, ours, config
                )
                for name, tensor in tensors
            }
            save_tensors(folder / "model.safetensors", named)
        else:
            rewrite(self.base, folder, lambda n, t: publish(n, t, ours, config))
        for path in tokenizer_files(self.base, config.family):
            copy(path, folder / path.name)
        document = read_json(folder / "config.json")
        document |= {"use_llm_lora": 0, "num_mask_token": config.mask_channels}
        (folder / "config.json").unlink()  # it may be the base's own file
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text, encoding="utf-8")


def share_fused(llm: LlamaForCausalLM) -> None:
    """Makes queries, keys and values share LoRA's first matrix.

    InternLM2 has one fused projection of all three, which LoRA is added to as a whole.
    """
    for layer in llm.model.layers:
        attention = layer.self_attn
        shared = attention.q_proj.lora_A["default"].weight
        for other in (attention.k_proj, attention.v_proj):
            other.lora_A["default"].weight = shared


def renew_mask_encoder(model: UrecaModel, tokens: int) -> None:
    """Gives the model a new mask encoder, as the authors initialize it.

    Args:
        model: The model, which is changed in place.
        tokens: Number of tokens that represent the mask of a tile.
    """
    model.config = replace(model.config, mask_channels=tokens)
    model.mask_encoder = nn.Sequential(
        nn.Conv2d(1, tokens, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(tokens, tokens, 3, stride=2, padding=1),
        nn.ReLU(),
    ).to(model.device)
    for module in (*model.mask_encoder, model.mask_linear):
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Of a convolution, the authors count the kernel in the inputs alone.
            outputs, inputs = len(module.weight), module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / (inputs + outputs)) ** 0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def jpeg_encoded(tile: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Returns a tile, uint8 (S, S, 3), as JPEG of a quality in [0, 100] shows it."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
