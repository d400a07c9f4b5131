"""DynRefer as a captioner: clips in; captions, tags, attributes and categories out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.checking import clip_problem
from fiftyone_regioncap.captioning.confidence import content_minimum
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
from fiftyone_regioncap.captioning.merging import best_look
from fiftyone_regioncap.captioning.views import (
    TASK_CONTEXTS,
    NestedViews,
    given_contexts,
    nested_views,
    to_gray,
)
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Caption, Frame, Mask, RegionClip, Scored
from fiftyone_regioncap.system import assets

TASKS = ("caption", "tags", "attributes", "category")
"""Everything that DynRefer can be asked."""

REGIONS_AT_ONCE = {"cuda": 32, "cpu": 2}
"""Regions whose views go through the ViT together. More don't make a CPU faster."""

CUTTERS = 4
"""Threads that cut views; hashing and resizing release the interpreter's lock."""


@dataclass(frozen=True)
class Settings:
    """What is asked, and how.

    Attributes:
        tasks: out of :data:`TASKS`.
        tag_threshold: tags with a higher score are given.
        attribute_ratio: attributes whose score is this many times the mean over all
            attributes are given, as in the authors' demo.
        contexts: ``"image"`` to choose the views by the image, ``"task"`` to choose
            them by the task where the paper has numbers for it, or the contexts.
        decoding: how captions are generated.
        frames: how many frames of a clip are looked at.
        regions_at_once: whose views go through the ViT together.
    """

    tasks: tuple[str, ...] = TASKS
    tag_threshold: float = 0.76
    attribute_ratio: float = 1.2
    contexts: str | tuple[float, ...] = "image"
    decoding: Decoding = field(default_factory=Decoding)
    frames: int = 4
    regions_at_once: int = 2


@dataclass(frozen=True)
class _Looks:
    """What is looked at: one region of one frame each.

    Attributes:
        frames: of each look, uint8 (H, W, 3).
        masks: of each look, bool (H, W).
        rows: of each clip, the looks at it; the best one first.
    """

    frames: list[Frame]
    masks: list[Mask]
    rows: list[list[int]]


class DynReferCaptioner:
    """Describes regions with DynRefer (arXiv 2405.16071).

    Of a clip with several frames, views are cut on each; tags, attributes and category
    are decided by the mean score, and the caption is written from the frame that
    :func:`fiftyone_regioncap.captioning.merging.best_look` chooses, with the track's
    tags as control words.

    Attributes:
        model: the networks.
        tags: names in the checkpoint's order.
        attributes: in the order of their file.
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
        settings: Settings | None = None,
        info: CaptionerInfo | None = None,
    ) -> None:
        """Puts the parts together; :meth:`from_pretrained` loads them.

        Args:
            model: the networks.
            text_tower: gives texts their embeddings, usually a :class:`TextTower`.
            controls: the T5's tokenizer.
            tags: in the checkpoint's order.
            attributes: to choose from.
            class_names: to choose from.
            settings: what is asked, and how.
            info: what it says of itself.
        """
        self.model = model
        self.tags = tuple(tags)
        self.attributes = tuple(attributes)
        self.settings = settings or Settings()
        self._text_tower = text_tower
        self._controls = controls
        self._info = info or CaptionerInfo("dynrefer", "dynrefer", "unknown", "unknown")
        self._prompts_per_attribute = [len(a.prompts()) for a in self.attributes]
        asked = set(self.settings.tasks)
        self._tag_texts = text_tower(self.tags) if asked & {"tags", "caption"} else None
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
        folder: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        class_names: Iterable[str] | None = None,
        tag_list: Sequence[str] | str | Path | None = None,
        tasks: Collection[str] = TASKS,
        tag_threshold: float | None = None,
        attribute_ratio: float = 1.2,
        contexts: str | tuple[float, ...] = "image",
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        frames: int = 4,
        regions_at_once: int | None = None,
        checkpoint: str | None = None,
        vocabulary: str | Path | None = None,
    ) -> DynReferCaptioner:
        """Loads a model.

        Args:
            folder: with the files that docs/dynrefer.md lists; base weights that are
                not in it come from the hub.
            device: a torch device; None for the GPU where there is one.
            dtype: float32, or bfloat16 for the authors' mixed precision; None for
                bfloat16 on GPUs that have it, float32 elsewhere.
            class_names: what the category is chosen from; None for the folder's
                ``classes.json`` or ``coco.json``. Doubles are left out with a warning.
            tag_list: names in the checkpoint's order, or a file with them; None for
                the folder's ``tag_list.txt`` or ``ram_tag_list.txt``.
            tasks: out of :data:`TASKS`.
            tag_threshold: tags with a higher score are given; None for the demo's.
            attribute_ratio: see :class:`Settings`.
            contexts: see :class:`Settings`.
            num_beams: of beam search; None for the demo's 5.
            max_new_tokens: of a caption; None for the demo's 30.
            frames: how many frames of a clip to look at.
            regions_at_once: whose views go through the ViT together; None for what
                suits the device.
            checkpoint: name of the file with the trained part, where the folder has
                several.
            vocabulary: CLIP's, as a file or folder; None to look in the folder, then
                among the assets.

        Raises:
            WeightsError: when something is missing, corrupt, or doesn't fit.
            BackendError: when the arguments ask for what there is not.
            PromptError: when contexts or class names are none.
        """
        unknown = set(tasks) - set(TASKS)
        if unknown or not tasks:
            raise BackendError(
                f"dynrefer has no tasks {sorted(unknown)}; choose out of "
                f"{', '.join(TASKS)}"
            )
        if not isinstance(contexts, str):
            contexts = given_contexts(contexts)
        elif contexts not in ("image", "task"):
            raise BackendError(
                f"contexts are 'image', 'task' or numbers, not {contexts!r}"
            )
        files = locate(Path(folder).expanduser(), checkpoint)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = place(load_model(files), where, dtype)
        if not isinstance(contexts, str) and len(contexts) != model.config.views:
            raise BackendError(
                f"the checkpoint fuses {model.config.views} views; give as many "
                f"contexts, not {len(contexts)}"
            )
        tower = TextTower(
            load_text_tower(files).to(where), clip_vocabulary(files, vocabulary)
        )
        said = files.settings.get("predict_kwargs", {})
        decoding = Decoding.read(said)
        if num_beams is not None:
            decoding = replace(decoding, num_beams=num_beams)
        if max_new_tokens is not None:
            decoding = replace(decoding, max_new_tokens=max_new_tokens)
        at_once = regions_at_once or REGIONS_AT_ONCE.get(where.type, 2)
        return cls(
            model,
            tower,
            Controls(files.tokenizer),
            tags=tag_names(files, tag_list),
            attributes=attribute_names(files) if "attributes" in tasks else (),
            class_names=category_names(files, class_names)
            if "category" in tasks
            else (),
            settings=Settings(
                tasks=tuple(task for task in TASKS if task in tasks),
                tag_threshold=(
                    float(said.get("tag_thr", Settings.tag_threshold))
                    if tag_threshold is None
                    else tag_threshold
                ),
                attribute_ratio=attribute_ratio,
                contexts=contexts,
                decoding=decoding,
                frames=frames,
                regions_at_once=at_once,
            ),
            info=CaptionerInfo(
                name="dynrefer",
                model=files.trained.stem,
                revision=assets.sha256(files.trained),
                license="not stated (the authors' code is Apache-2.0)",
                frames=frames,
                batch_size=32 if where.type == "cuda" else 8,
                tasks=frozenset(tasks),
            ),
        )

    @property
    def info(self) -> CaptionerInfo:
        """Name, weights, license and needs."""
        return self._info

    def use_classes(self, names: Iterable[str]) -> None:
        """Chooses categories out of other names from now on.

        Args:
            names: any number; empty for no category. Doubles are left out with a
                warning.
        """
        self.class_names = distinct_classes(names)
        self._class_texts = (
            self._text_tower([class_prompt(name) for name in self.class_names])
            if self.class_names
            else None
        )

    @torch.inference_mode()
    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order.

        Args:
            clips: of any objects, videos, sizes and lengths.
            prompt: control words, separated by commas, that captions should be about.

        Raises:
            torch.OutOfMemoryError: when the batch doesn't fit.
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
        looks = self._looks(clips)
        tokens = self._tokens(looks)
        asked = self.settings.tasks
        tags: list[list[Scored]] = [[] for _ in clips]
        attributes: list[list[Scored]] = [[] for _ in clips]
        categories: list[Scored | None] = [None for _ in clips]
        if self._tag_texts is not None:
            scores = _merge(self.tag_scores(tokens["tags"]), looks.rows)
            tags = [passing(self.tags, s, self.settings.tag_threshold) for s in scores]
        if self._attribute_texts is not None:
            scores = _merge(self.attribute_scores(tokens["attributes"]), looks.rows)
            names = [attribute.name for attribute in self.attributes]
            ratio = self.settings.attribute_ratio
            attributes = [passing(names, s, ratio * float(s.mean())) for s in scores]
        if self._class_texts is not None and "category" in asked:
            logits = self.class_logits(tokens["category"])
            matches = self.model.attributes.match_probability(logits)
            categories = [
                (self.class_names[int(match.argmax())], float(match.max()))
                for match in _merge(matches, looks.rows)
            ]
        written: list[dict[str, Any]] = [{} for _ in clips]
        if "caption" in asked:
            controls = [control_text(words, (name for name, _ in t)) for t in tags]
            best_rows = [rows[0] for rows in looks.rows]
            generated = self.write(tokens["caption"][best_rows], controls)
            written = self._sentences(generated)
        return [
            Caption(
                label=clip.label or _short_name(category, named),
                tags=tuple(named) if "tags" in asked else (),
                attributes=tuple(described),
                category=category,
                **text,
            )
            for clip, named, described, category, text in zip(
                clips, tags, attributes, categories, written, strict=True
            )
        ]

    def tag_scores(self, tokens: Tensor) -> Tensor:
        """How probable each tag is, float (S, tags).

        Args:
            tokens: float32 (S, queries, width), of
                :meth:`DynReferModel.region_tokens`.
        """
        assert self._tag_texts is not None
        return self.model.tag_logits(tokens, self._tag_texts).sigmoid()

    def attribute_scores(self, tokens: Tensor) -> Tensor:
        """The score of each attribute's best prompt, float (S, attributes).

        Scores lie close together: the authors leave out the learned temperature here.
        """
        assert self._attribute_texts is not None
        scores = self.model.match_logits(tokens, self._attribute_texts).sigmoid()
        each = scores.split(self._prompts_per_attribute, dim=1)
        return torch.stack([prompts.amax(dim=1) for prompts in each], dim=1)

    def class_logits(self, tokens: Tensor) -> Tensor:
        """The raw logit of each class, float (S, classes)."""
        assert self._class_texts is not None
        return self.model.match_logits(tokens, self._class_texts)

    def write(self, tokens: Tensor, controls: Sequence[str]) -> Generated:
        """Generates a caption for each region.

        Args:
            tokens: float32 (B, queries, width).
            controls: of each region, from :func:`control_text`.
        """
        ids, mask = self._controls.encode(controls)
        device = self.model.device
        return self.model.generate(
            tokens, ids.to(device), mask.to(device), self.settings.decoding
        )

    def decode(self, generated: Generated) -> list[str]:
        """The generated captions as text."""
        return self._controls.decode(generated.sequences)

    def _looks(self, clips: Sequence[RegionClip]) -> _Looks:
        """Chooses frames: those that show the object, evenly, and the best one."""
        frames: list[Frame] = []
        masks: list[Mask] = []
        rows: list[list[int]] = []
        for clip in clips:
            best = best_look(clip)
            assert best is not None
            shown = [i for i, mask in enumerate(clip.masks) if mask.any()]
            wanted = min(self.settings.frames, len(shown))
            even = np.linspace(0, len(shown) - 1, wanted).round().astype(int)
            others = [shown[i] for i in even if shown[i] != best][: wanted - 1]
            chosen = [best, *others]
            rows.append(list(range(len(frames), len(frames) + len(chosen))))
            frames += [clip.frames[i] for i in chosen]
            masks += [clip.masks[i] for i in chosen]
        return _Looks(frames, masks, rows)

    def _tokens(self, looks: _Looks) -> dict[str, Tensor]:
        """The tokens of all looks, by task."""
        by_contexts: dict[str | tuple[float, ...], Tensor] = {}
        by_task = {}
        for task in TASKS:
            contexts = self.settings.contexts
            if contexts == "task":
                contexts = task if task in TASK_CONTEXTS else "image"
            needed = {task, *(["caption"] if task == "tags" else [])}
            if not needed & set(self.settings.tasks):
                continue
            if contexts not in by_contexts:
                by_contexts[contexts] = self._encode(looks, contexts)
            by_task[task] = by_contexts[contexts]
        return by_task

    def _encode(self, looks: _Looks, contexts: str | tuple[float, ...]) -> Tensor:
        """The Q-Former's tokens of all looks, float32 (S, queries, width)."""
        # Objects of one video share their frames.
        shared = {id(frame): frame for frame in looks.frames if contexts == "image"}
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

        # Views of the next regions are cut while the networks work on these.
        with ThreadPoolExecutor(CUTTERS) as pool:
            views = pool.map(cut, looks.frames, looks.masks)
            return torch.cat(
                [
                    self.model.region_tokens(*stack_views(together))
                    for together in _batches(views, self.settings.regions_at_once)
                ]
            )

    def _sentences(self, generated: Generated) -> list[dict[str, Any]]:
        """Text, confidence and length of each caption, by the fields of Caption."""
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
                        self._controls.pieces(ids)[: len(written)], written
                    ),
                    "tokens": len(written),
                }
            )
        return sentences


def _batches(views: Iterator[NestedViews], size: int) -> Iterator[list[NestedViews]]:
    while together := list(islice(views, size)):
        yield together


def stack_views(views: Sequence[NestedViews]) -> tuple[Tensor, Tensor]:
    """Views of several regions as one batch.

    Returns:
        pictures, uint8 (S, V, size, size, 3), and regions, float32 (S, V, 4).
    """
    pictures = np.stack([np.stack(region.pictures) for region in views])
    rois = np.stack([region.rois for region in views])
    return torch.from_numpy(pictures), torch.from_numpy(rois)


def passing(
    names: Sequence[str], scores: Tensor, threshold: float
) -> list[tuple[str, float]]:
    """The names whose score is above the threshold, in their own order.

    Compared in the scores' precision, as the authors do: in bfloat16 the first score
    that passes 0.76 is 0.765625.
    """
    rows = (scores > threshold).nonzero().flatten().tolist()
    return [(names[row], float(scores[row])) for row in rows]


def _short_name(category: Scored | None, tags: Sequence[Scored]) -> str | None:
    """The category; without one, the tag with the highest score."""
    if category is not None:
        return category[0]
    return max(tags, key=lambda tag: tag[1])[0] if tags else None


def _merge(scores: Tensor, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The mean score over the looks at each clip."""
    return [scores[list(looks)].mean(dim=0) for looks in rows]
