"""Shows one caption to a person: frames, timeline, texts and measurements."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import fiftyone as fo
from bson import ObjectId
from PIL import Image, ImageDraw, ImageFont

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.captions import (
    REGION_ATTRIBUTES,
    CaptionRecord,
    Review,
    read_caption,
    read_region,
)
from fiftyone_regioncap.dataset.clips import iter_clips, iter_image_clips
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.dataset.targets import short_path
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.review.diff import Piece, differences
from fiftyone_regioncap.review.preferences import PLACE, place_of
from fiftyone_regioncap.review.session import Ref
from fiftyone_regioncap.video.clips import plan_clip
from fiftyone_regioncap.visualization.contact_sheet import film_strip

STRIP_FRAMES = 4
"""Number of frames of the track that are shown."""

COLORS: Final[dict[Review, str]] = {
    "unreviewed": "#9aa0a6",
    "accepted": "#009E73",
    "edited": "#56B4E9",
    "rejected": "#D55E00",
}
"""Colors of the windows on the timeline by review; legible in any theme."""

_WIDTH = 880
_LANE = 16
_TEXT = 12
_INK = "#808488"


@dataclass(frozen=True)
class Card:
    """One caption with what belongs to it.

    Attributes:
        ref: Ids of the caption.
        record: The caption.
        own: All captions of the same object in the same field, by window.
        others: Captions of the same object in the field to compare with.
        video: Name of the video or image.
        frame_count: Number of frames of the video; None when it is unknown.
        image: Whether it is about a region of an image.
    """

    ref: Ref
    record: CaptionRecord
    own: tuple[CaptionRecord, ...]
    others: tuple[CaptionRecord, ...]
    video: str
    frame_count: int | None
    image: bool = False

    @property
    def other(self) -> CaptionRecord | None:
        """The caption to compare with whose window overlaps most."""
        first, last = self.record.support

        def score(record: CaptionRecord) -> float:
            a, b = record.support
            shared = min(b, last) - max(a, first) + 1
            return shared / (max(b, last) - min(a, first) + 1)

        best = max(self.others, key=score, default=None)
        return best if best is not None and score(best) > 0 else None


def load_card(
    dataset: fo.Dataset, field: str, ref: Ref, *, compare: str | None = None
) -> Card:
    """Reads one caption and its neighbors; no masks and no frames.

    Args:
        dataset: A dataset of videos or images.
        field: Field of the captions.
        ref: Ids of the caption.
        compare: Another field of captions of the same tracks.

    Raises:
        FieldError: If a field is absent.
        RegionCapError: If the caption is gone.
    """
    names = [field] if compare is None else [field, compare]
    captions = [CaptionField.of(dataset, name) for name in names]
    of_images = captions[0].of_images
    # The documents themselves: FiftyOne would make objects of all labels of a video.
    wanted = {"filepath": 1, "metadata.total_frame_count": 1}
    read = (*REGION_ATTRIBUTES, *PLACE, "_id")  # and no mask of a region
    for one in captions:
        paths = [f"{one.labels}.{key}" for key in read] if of_images else [one.name]
        wanted |= dict.fromkeys(paths, 1)
    query = {"_id": ObjectId(ref.sample_id)}
    document = dataset._sample_collection.find_one(query, wanted) or {}
    own, *beside = [labels_of(document.get(name)) for name in names]
    shown = next((one for one in own if str(one["_id"]) == ref.label_id), None)
    if shown is None:
        raise RegionCapError("the caption is gone; refresh the review")
    others = [label for labels in beside for label in labels]
    video = short_path(document["filepath"])
    if of_images:
        record = read_region(shown)
        same = [read_region(o) for o in others if place_of(o) == place_of(shown)]
        return Card(ref, record, (record,), tuple(same), video, None, image=True)
    record = read_caption(shown)
    return Card(
        ref,
        record,
        tuple(r for r in map(read_caption, own) if r.index == record.index),
        tuple(r for r in map(read_caption, others) if r.index == record.index),
        video,
        (document.get("metadata") or {}).get("total_frame_count"),
    )


def draw_strip(dataset: fo.Dataset, card: Card, field: str) -> Image.Image:
    """Draws frames of the caption's track and window with their masks, or its region.

    Args:
        dataset: A dataset of videos or images.
        card: Card of the caption.
        field: Field of the tracks; of images, of the regions.

    Raises:
        VideoError: If the video or the image can't be read.
        FieldError: If there is no such field, or a mask on disk can't be read.
        RegionCapError: If the object is nowhere in the caption's window.
    """
    record = card.record
    sample = dataset[card.ref.sample_id]
    if card.image:
        ((_, clip),) = iter_image_clips(sample, field, {card.ref.label_id}, None)
        return Image.fromarray(film_strip(clip, columns=1))
    own = [
        track
        for track in read_tracks(sample, field, support=record.support)
        if track.object_id == record.index
    ]
    if not own:
        raise RegionCapError(
            f"object {record.index} has no labels in {field!r} on these frames"
        )
    plan = plan_clip(own[0], record.support, STRIP_FRAMES)
    ((_, clip),) = iter_clips(sample, field, [plan])
    return Image.fromarray(film_strip(clip, columns=STRIP_FRAMES))


def draw_timeline(card: Card) -> Image.Image:
    """Draws the windows of the object's captions over the length of the video.

    The caption's own window is outlined; below a line are those of the other field.
    """
    groups = [lanes(card.own), lanes(card.others)]
    shown = [lane for group in groups for lane in group]
    last = max(r.support[1] for lane in shown for r in lane) + 1
    count = max(card.frame_count or 0, last, 1)
    height = len(shown) * (_LANE + 4) + (6 if card.others else 0) + _TEXT + 8
    image = Image.new("RGBA", (_WIDTH, height))
    draw = ImageDraw.Draw(image)

    def x(frame: int) -> float:
        return frame / count * (_WIDTH - 1)

    y = 2
    for number, group in enumerate(groups):
        if number and group:
            draw.line((0, y, _WIDTH, y), fill=_INK)
            y += 6
        for lane in group:
            draw.rectangle((0, y, _WIDTH - 1, y + _LANE), fill="#80848830")
            for record in lane:
                first, end = x(record.support[0]), x(record.support[1] + 1)
                box = (first, y, max(end - 1, first + 2), y + _LANE)
                draw.rectangle(box, fill=COLORS[record.review])
                if number == 0 and record == card.record:
                    draw.rectangle(box, outline="#FF6D04", width=3)
            y += _LANE + 4
    font = ImageFont.load_default(_TEXT)
    draw.text((0, height - 2), "1", font=font, fill=_INK, anchor="ls")
    draw.text((_WIDTH - 1, height - 2), str(count), font=font, fill=_INK, anchor="rs")
    return image


def lanes(records: Iterable[CaptionRecord]) -> list[list[CaptionRecord]]:
    """Spreads windows over as few rows as keep them from covering each other."""
    rows: list[list[CaptionRecord]] = []
    for record in sorted(records, key=lambda record: record.support):
        for row in rows:
            if row[-1].support[1] < record.support[0]:
                row.append(record)
                break
        else:
            rows.append([record])
    return rows


def data_url(image: Image.Image) -> str:
    """Encodes an image as a data URL: PNG if it is transparent, else JPEG."""
    kind = "PNG" if image.mode == "RGBA" else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def title(card: Card) -> str:
    """Returns the object, the video, the frames and the review, as Markdown."""
    record = card.record
    if card.image:
        name = escape(record.label or "a region")
        return f"**{name}** in {escape(card.video)}: **{record.review}**"
    first, last = record.support
    name = f"#{record.index} {record.label or ''}".strip()
    return (
        f"**{escape(name)}** in {escape(card.video)}, "
        f"frames {first + 1} to {last + 1}: **{record.review}**"
    )


def texts(card: Card) -> tuple[str, str | None]:
    """Returns the caption, and the one to compare it with, as Markdown.

    Words that only one of the two has are bold.
    """
    own, other = _text(card.record), card.other
    if not card.others:
        return _paragraph([Piece(own)]), None
    if other is None:
        return _paragraph([Piece(own)]), "*no caption for these frames*"
    one, two = differences(own, _text(other))
    return _paragraph(one), _paragraph(two)


def _text(record: CaptionRecord) -> str:
    return record.caption or f"(error: {record.error})"


def _paragraph(pieces: Sequence[Piece]) -> str:
    marked = (
        f"**{escape(piece.text)}**" if piece.own else _space_or_word(piece.text)
        for piece in pieces
    )
    return "".join(marked).strip()


def _space_or_word(text: str) -> str:
    if text.isspace():
        return "\\\n" if "\n" in text or "\r" in text else " "
    return escape(text)


def measurements(card: Card) -> str:
    """Returns measurements and the model's confidence, as Markdown."""
    record = card.record
    rows = [
        ("confidence", _number(record.confidence)),
        ("least sure word", _number(record.min_confidence)),
        ("agreement of samples", _number(record.agreement)),
        ("visible on", _share(record.visible_fraction, "of the frames")),
        ("size", _share(record.mean_area, "of the frame")),
        (
            "motion",
            None
            if record.speed is None
            else f"{record.speed:.2f} frame widths/s {record.direction or ''}".strip(),
        ),
        ("color", record.dominant_color),
        ("tags", ", ".join(tag for tag, _ in record.tags)),
        ("attributes", ", ".join(attribute for attribute, _ in record.attributes)),
        ("category", record.category[0] if record.category else None),
        ("model", record.model),
        ("the model said", record.source_caption),
        ("error", record.error),
    ]
    return " · ".join(f"{name} **{escape(value)}**" for name, value in rows if value)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _share(value: float | None, of: str) -> str | None:
    return None if value is None else f"{value:.1%} {of}"
