"""DynRefer as a captioner: clips in; captions, tags, attributes and categories out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.checking import clip_problem
from fiftyone_regioncap.captioning.confidence import content_minimum
from fiftyone_regioncap.captioning.dynrefer.configuration import (
    DYNREFER,
    TASKS,
    DynReferOptions,
)
from fiftyone_regioncap.captioning.dynrefer.controls import (
    Controls,
    control_text,
    control_words,
)
from fiftyone_regioncap.captioning.dynrefer.model import (
    Decoding,
    DynReferModel,
    Generated,
    place,
)
from fiftyone_regioncap.captioning.dynrefer.names import (
    attribute_names,
    category_names,
    clip_vocabulary,
    tag_names,
)
from fiftyone_regioncap.captioning.dynrefer.sizes import regions_at_once
from fiftyone_regioncap.captioning.dynrefer.texts import (
    Attribute,
    TextTower,
    class_prompt,
    distinct_classes,
)
from fiftyone_regioncap.captioning.dynrefer.weights import (
    load_model,
    load_text_tower,
    locate,
)
from fiftyone_regioncap.captioning.merging import best_frame
from fiftyone_regioncap.captioning.views import (
    TASK_CONTEXTS,
    NestedViews,
    nested_views,
    to_gray,
)
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Caption, Frame, Mask, RegionClip, Scored
from fiftyone_regioncap.models.devices import choose_device
from fiftyone_regioncap.models.loading import config_errors, revision_of

TAG_THRESHOLD = 0.76
"""The authors' demo gives tags with a higher score."""

NOT_FINITE = (
    "the model's scores for this region are no numbers (NaN); check the weights, or "
    "choose dtype='float32'"
)
"""Error of a caption whose numbers mean nothing."""

CUTTERS = 4
"""Threads that cut views; hashing and resizing release the interpreter's lock."""


@dataclass(frozen=True)
class _Selection:
    """The frames that clips are described from, one region on each.

    Attributes:
        frames: Frames, uint8 (H, W, 3).
        masks: A mask for each frame, bool (H, W).
        rows: For each clip, the numbers of its frames; the best one first.
    """

    frames: list[Frame]
    masks: list[Mask]
    rows: list[list[int]]

    def mean(self, scores: Tensor) -> Tensor:
        """Averages scores (frames, N) over the frames of each clip, (clips, N)."""
        return torch.stack([scores[numbers].mean(dim=0) for numbers in self.rows])


class DynReferCaptioner:
    """Describes regions with DynRefer (arXiv 2405.16071).

    Of a clip with several frames, views are cut on each; tags, attributes and category
    are decided by the mean score, and the caption is written from the frame that
    :func:`fiftyone_regioncap.captioning.merging.best_frame` chooses, with the track's
    tags as control words.

    Args:
        model: DynRefer's networks.
        text_tower: Embeds texts, usually a :class:`TextTower`.
        controls: The T5's tokenizer.
        tags: Tags in the checkpoint's order.
        attributes: Attributes to choose from, in the order of their file.
        class_names: Class names to choose from.
        options: Options of prediction.
        decoding: Settings of beam search; options that are given replace its values.
        info: Information about the captioner; None for a model without a name.

    Attributes:
        model: DynRefer's networks.
        text_tower: Embeds texts.
        controls: The T5's tokenizer.
        tags: Tags in the checkpoint's order.
        tag_texts: Their embeddings; None where no task needs them.
        attributes: Attributes to choose from.
        options: Options of prediction, with all values that depend on the checkpoint
            and the device.
        info: Name, weights, license and needs.
    """

    def __init__(
        self,
        model: DynReferModel,
        text_tower: Callable[[Sequence[str]], Tensor],
        controls: Controls,
        *,
        tags: Sequence[str],
        attributes: Sequence[Attribute] = (),
        class_names: Sequence[str] = (),
        options: DynReferOptions | None = None,
        decoding: Decoding | None = None,
        info: CaptionerInfo | None = None,
    ) -> None:
        options = options or DynReferOptions()
        decoding = decoding or Decoding()
        decoding = replace(
            decoding,
            num_beams=options.num_beams or decoding.num_beams,
            max_new_tokens=options.max_new_tokens or decoding.max_new_tokens,
        )
        self.model = model
        self.tags = tuple(tags)
        self.attributes = tuple(attributes)
        self.options = replace(
            options,
            tasks=tuple(task for task in TASKS if task in options.tasks),
            num_beams=decoding.num_beams,
            max_new_tokens=decoding.max_new_tokens,
            tag_threshold=(
                TAG_THRESHOLD
                if options.tag_threshold is None
                else options.tag_threshold
            ),
            regions_at_once=(
                options.regions_at_once or regions_at_once(model, decoding)
            ),
        )
        contexts, views = options.contexts, model.config.views
        if not isinstance(contexts, str) and len(contexts) != views:
            raise BackendError(
                f"the checkpoint fuses {views} views; give as many contexts, not "
                f"{len(contexts)}"
            )
        self._decoding = decoding
        self.text_tower = text_tower
        self.controls = controls
        self.info = replace(
            info or CaptionerInfo("dynrefer", "dynrefer", "unknown", "unknown"),
            frames=options.frames,
            batch_size=32 if model.device.type == "cuda" else 8,
            tasks=frozenset(options.tasks),
        )
        self._prompts_per_attribute = [len(a.prompts()) for a in self.attributes]
        asked = set(options.tasks)
        self.tag_texts = text_tower(self.tags) if asked & {"tags", "caption"} else None
        self._attribute_texts = (
            text_tower([p for a in self.attributes for p in a.prompts()])
            if "attributes" in asked and self.attributes
            else None
        )
        self.class_names: tuple[str, ...] = ()
        self._class_texts: Tensor | None = None
        if "category" in asked:
            self.use_classes(class_names)

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        *,
        device: str | torch.device | None = None,
        options: DynReferOptions | None = None,
    ) -> DynReferCaptioner:
        """Loads a model.

        Args:
            weights: A folder with the files that docs/dynrefer.md lists; base weights
                that are not in it come from the hub.
            device: Device to run on; None for a GPU where there is one.
            options: Options of prediction.

        Raises:
            WeightsError: If something is missing, corrupt, or doesn't fit.
            BackendError: If there is no such device, or the checkpoint has another
                number of views than contexts are given.
        """
        options = options or DynReferOptions()
        files = locate(Path(weights).expanduser(), options.checkpoint)
        target = choose_device(device)
        model = place(load_model(files), target, options.dtype)
        tower = TextTower(
            load_text_tower(files).to(target),
            clip_vocabulary(files, options.vocabulary),
        )
        with config_errors(f"{files.config} under predict_kwargs"):
            said = files.settings.get("predict_kwargs", {})
            decoding = Decoding.read(said)
            if options.tag_threshold is None and "tag_thr" in said:
                options = replace(options, tag_threshold=float(said["tag_thr"]))
        return cls(
            model,
            tower,
            Controls(files.tokenizer),
            tags=tag_names(files, options.tag_list),
            attributes=attribute_names(files) if "attributes" in options.tasks else (),
            class_names=(
                category_names(files, options.class_names)
                if "category" in options.tasks
                else ()
            ),
            options=options,
            decoding=decoding,
            info=CaptionerInfo(
                name="dynrefer",
                model=files.trained.stem,
                revision=revision_of(files.folder, [files.trained]),
                license=DYNREFER.license,
            ),
        )

    def use_classes(self, names: Iterable[str]) -> None:
        """Chooses categories out of other names from now on.

        Args:
            names: Any number of names; empty for no category. Duplicates are left out
                with a warning.
        """
        self.class_names = distinct_classes(names)
        self._class_texts = (
            self.text_tower([class_prompt(name) for name in self.class_names])
            if self.class_names
            else None
        )

    @torch.inference_mode()
    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order.

        Args:
            clips: Clips of any objects, videos, sizes and lengths.
            prompt: Control words, separated by commas, that captions should be about.

        Raises:
            torch.OutOfMemoryError: If the batch doesn't fit.
        """
        problems = [clip_problem(clip) for clip in clips]
        good = [
            clip for clip, problem in zip(clips, problems, strict=True) if not problem
        ]
        answers = iter(self._describe(good, control_words(prompt)) if good else ())
        return [
            Caption(label=clip.label, error=problem) if problem else next(answers)
            for clip, problem in zip(clips, problems, strict=True)
        ]

    def _describe(
        self, clips: Sequence[RegionClip], words: Sequence[str]
    ) -> list[Caption]:
        selection = self._select_frames(clips)
        tokens = self._tokens(selection)
        asked = self.options.tasks
        tags: list[list[Scored]] = [[] for _ in clips]
        attributes: list[list[Scored]] = [[] for _ in clips]
        categories: list[Scored | None] = [None for _ in clips]
        written: list[dict[str, Any]] = [{} for _ in clips]
        scored: list[Tensor] = []
        if self.tag_texts is not None:
            scores = selection.mean(self.tag_scores(tokens["tags"]))
            scored.append(scores)
            threshold = self.options.tag_threshold
            assert threshold is not None
            tags = [passing(self.tags, row, threshold) for row in scores]
        if self._attribute_texts is not None:
            scores = selection.mean(self.attribute_scores(tokens["attributes"]))
            scored.append(scores)
            names = [attribute.name for attribute in self.attributes]
            ratio = self.options.attribute_ratio
            attributes = [
                passing(names, row, ratio * float(row.mean())) for row in scores
            ]
        if self._class_texts is not None and "category" in asked:
            logits = self.class_logits(tokens["category"])
            scores = selection.mean(self.model.attributes.match_probability(logits))
            scored.append(scores)
            categories = [
                (self.class_names[int(row.argmax())], float(row.max()))
                for row in scores
            ]
        if "caption" in asked:
            controls = [control_text(words, (name for name, _ in t)) for t in tags]
            best_rows = [rows[0] for rows in selection.rows]
            generated = self.write(tokens["caption"][best_rows], controls)
            scored.append(generated.probabilities)
            written = self._sentences(generated)
        finite = torch.ones(len(clips), dtype=torch.bool, device=self.model.device)
        for scores in scored:
            finite &= scores.isfinite().all(dim=1)
        return [
            Caption(
                label=clip.label or _short_name(category, named),
                tags=tuple(named) if "tags" in asked else (),
                attributes=tuple(described),
                category=category,
                **text,
            )
            if sound
            else Caption(label=clip.label, error=NOT_FINITE)
            for clip, named, described, category, text, sound in zip(
                clips,
                tags,
                attributes,
                categories,
                written,
                finite.tolist(),
                strict=True,
            )
        ]

    def tag_scores(self, tokens: Tensor) -> Tensor:
        """Returns the probability of each tag, float (S, tags).

        Args:
            tokens: Region tokens of :meth:`DynReferModel.region_tokens`, float32 (S,
                queries, width).
        """
        assert self.tag_texts is not None
        return self.model.tag_logits(tokens, self.tag_texts).sigmoid()

    def attribute_scores(self, tokens: Tensor) -> Tensor:
        """Returns the score of each attribute's best prompt, float (S, attributes).

        Scores lie close together: the authors leave out the learned temperature here.
        """
        assert self._attribute_texts is not None
        scores = self.model.match_logits(tokens, self._attribute_texts).sigmoid()
        each = scores.split(self._prompts_per_attribute, dim=1)
        return torch.stack([prompts.amax(dim=1) for prompts in each], dim=1)

    def class_logits(self, tokens: Tensor) -> Tensor:
        """Returns the raw logit of each class, float (S, classes)."""
        assert self._class_texts is not None
        return self.model.match_logits(tokens, self._class_texts)

    def write(self, tokens: Tensor, controls: Sequence[str]) -> Generated:
        """Generates a caption for each region.

        Args:
            tokens: Region tokens, float32 (B, queries, width).
            controls: Control words of each region, from :func:`control_text`.
        """
        ids, mask = self.controls.encode(controls)
        device = self.model.device
        return self.model.generate(
            tokens, ids.to(device), mask.to(device), self._decoding
        )

    def decode(self, generated: Generated) -> list[str]:
        """Returns the generated captions as text."""
        return self.controls.decode(generated.sequences)

    def _select_frames(self, clips: Sequence[RegionClip]) -> _Selection:
        """Selects frames that show the object, evenly, and the best one."""
        frames: list[Frame] = []
        masks: list[Mask] = []
        rows: list[list[int]] = []
        for clip in clips:
            best = best_frame(clip)
            assert best is not None
            shown = [i for i, mask in enumerate(clip.masks) if mask.any()]
            wanted = min(self.options.frames, len(shown))
            even = np.linspace(0, len(shown) - 1, wanted).round().astype(int)
            others = [shown[i] for i in even if shown[i] != best][: wanted - 1]
            chosen = [best, *others]
            rows.append(list(range(len(frames), len(frames) + len(chosen))))
            frames += [clip.frames[i] for i in chosen]
            masks += [clip.masks[i] for i in chosen]
        return _Selection(frames, masks, rows)

    def _tokens(self, selection: _Selection) -> dict[str, Tensor]:
        """Returns the Q-Former's tokens of all regions, by task."""
        by_contexts: dict[str | tuple[float, ...], Tensor] = {}
        by_task: dict[str, Tensor] = {}
        for task in TASKS:
            contexts: str | tuple[float, ...] = self.options.contexts
            if contexts == "task":
                contexts = task if task in TASK_CONTEXTS else "image"
            needed = {task, *(["caption"] if task == "tags" else [])}
            if not needed & set(self.options.tasks):
                continue
            if contexts not in by_contexts:
                by_contexts[contexts] = self._encode(selection, contexts)
            by_task[task] = by_contexts[contexts]
        return by_task

    def _encode(
        self, selection: _Selection, contexts: str | tuple[float, ...]
    ) -> Tensor:
        """Returns the Q-Former's tokens of all regions, float32 (S, queries, width)."""
        # Objects of one video share their frames.
        frames = selection.frames
        shared = {id(frame): frame for frame in frames if contexts == "image"}
        grays = {key: to_gray(frame) for key, frame in shared.items()}

        def cut(frame: Frame, mask: Mask) -> NestedViews:
            return nested_views(
                frame,
                mask,
                contexts=contexts,
                count=self.model.config.views,
                size=self.model.picture_size,
                gray=grays.get(id(frame)),
            )

        at_once = self.options.regions_at_once or 1
        # Views of the next regions are cut while the networks work on these.
        with ThreadPoolExecutor(CUTTERS) as pool:
            views = pool.map(cut, frames, selection.masks)
            return torch.cat(
                [
                    self.model.region_tokens(*stack_views(together))
                    for together in iter(lambda: list(islice(views, at_once)), [])
                ]
            )

    def _sentences(self, generated: Generated) -> list[dict[str, Any]]:
        """Returns text, confidence and length of captions, by the fields of Caption."""
        pad = self.model.config.language.pad_token_id
        sentences = []
        for text, ids, probabilities in zip(
            self.decode(generated),
            generated.sequences[:, 1:],
            generated.probabilities,
            strict=True,
        ):
            written = probabilities[ids != pad].tolist()
            sentences.append(
                {
                    "text": text,
                    "confidence": sum(written) / len(written) if written else None,
                    "min_confidence": content_minimum(
                        self.controls.pieces(ids)[: len(written)], written
                    ),
                    "tokens": len(written),
                }
            )
        return sentences


def stack_views(views: Sequence[NestedViews]) -> tuple[Tensor, Tensor]:
    """Stacks views of several regions to one batch.

    Returns:
        Pictures, uint8 (S, V, size, size, 3), and regions, float32 (S, V, 4).
    """
    pictures = np.stack([np.stack(region.pictures) for region in views])
    rois = np.stack([region.rois for region in views])
    return torch.from_numpy(pictures), torch.from_numpy(rois)


def passing(
    names: Sequence[str], scores: Tensor, threshold: float
) -> list[tuple[str, float]]:
    """Returns the names whose score is above the threshold, in their own order.

    Compared in the scores' precision, as the authors do: in bfloat16 the first score
    that passes 0.76 is 0.765625.
    """
    rows = (scores > threshold).nonzero().flatten().tolist()
    return [(names[row], float(scores[row])) for row in rows]


def _short_name(category: Scored | None, tags: Sequence[Scored]) -> str | None:
    """Returns the category; without one, the tag with the highest score."""
    if category is not None:
        return category[0]
    return max(tags, key=lambda tag: tag[1])[0] if tags else None
