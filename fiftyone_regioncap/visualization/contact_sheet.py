"""Draws contact sheets of tracks and their captions, to judge both at a glance.

The first row shows whole frames with every mask. Each row after it shows one track: its
caption on the left, frames cropped around the object on the right. All crops of a track
have the same scale, so that one sees the object grow and shrink.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import supervision as sv
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fiftyone_regioncap.core.types import Frame, Mask, RegionClip, box_of_mask

# Okabe and Ito's colors, which people with any color vision can tell apart.
_PALETTE = sv.ColorPalette.from_hex(
    ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]
)
_PAPER, _INK, _FAINT = "#ffffff", "#1a1a1a", "#6b6b6b"
# What is legible on each of them.
_ON_PALETTE = sv.ColorPalette.from_hex([_INK] * 4 + [_PAPER] * 2 + [_INK])
# Supervision needs matplotlib, which ships this font for Latin, Greek, Cyrillic and
# more; Pillow's own knows little beyond ASCII.
_FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
_GAP = 12
_TEXT_WIDTH = 380
_CELL_HEIGHT = 200
_TITLE_SIZE, _TEXT_SIZE, _TAG_SIZE = 18, 14, 13
_LINE = 1.35
_MAX_ROW_HEIGHT = 2 * _CELL_HEIGHT
# Around the object a cut-out shows half of its size on each side.
_CONTEXT = 2.0


@dataclass(frozen=True)
class SheetRow:
    """One track of the sheet.

    Attributes:
        object_id: Object id, which selects the color, the same as in the scenes.
        clip: Frames and masks of the track; some are shown, evenly chosen.
        title: Title such as ``"#1 dog"``.
        caption: Caption of the object, or the reason why it has none.
    """

    object_id: int
    clip: RegionClip
    title: str
    caption: str


@dataclass(frozen=True)
class Scene:
    """One whole frame of the sheet.

    Attributes:
        frame: Image, uint8 (H, W, 3) RGB.
        masks: Masks by object id, bool (H, W); invisible objects are left out.
        index: Frame index, from 0; None for images.
    """

    frame: Frame
    masks: Mapping[int, Mask]
    index: int | None = None


def contact_sheet(
    rows: Sequence[SheetRow],
    scenes: Sequence[Scene] = (),
    *,
    title: str = "",
    columns: int = 4,
) -> NDArray[np.uint8]:
    """Draws tracks and captions.

    Frames are numbered as FiftyOne does, from 1. Text is cut with an ellipsis only
    where a caption is longer than about twenty lines.

    Args:
        rows: The tracks, in the order they are shown.
        scenes: Frames to show whole; at most ``columns`` of them, evenly chosen.
        title: Title of the sheet, such as the video's name.
        columns: Greatest number of frames in a row.

    Returns:
        The sheet, uint8 (H, W, 3) RGB.

    Raises:
        ValueError: If there is neither a row nor a scene, or no column.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}; give at least 1")
    if not rows and not scenes:
        raise ValueError("nothing to show; give rows or scenes")
    ids = [row.object_id for row in rows]
    ids += sorted({i for scene in scenes for i in scene.masks} - set(ids))
    # Long tracks have several rows, one a window.
    colors = {object_id: number for number, object_id in enumerate(dict.fromkeys(ids))}
    names = {row.object_id: _plain(row.title) for row in rows}

    example = scenes[0].frame if scenes else rows[0].clip.frames[0]
    cell = _cell_size(example)
    bands = []
    if scenes or title:
        shown = [scenes[i] for i in _evenly(len(scenes), columns)]
        cells = [_draw_scene(scene, cell, colors, names) for scene in shown]
        bands.append(_beside([_text(title, _scene_note(scenes), "", None), *cells]))
    for row in rows:
        color = _PALETTE.by_idx(colors[row.object_id]).as_hex()
        text = _text(row.title, _support(row.clip), row.caption, color)
        bands.append(_beside([text, *_draw_clip(row, cell, colors, columns)]))
    return np.asarray(_stack(bands))


def film_strip(clip: RegionClip, *, columns: int = 4) -> NDArray[np.uint8]:
    """Draws a track's frames alone, cut around the object as on a contact sheet.

    Args:
        clip: Frames and masks of the track; some are shown, evenly chosen.
        columns: Greatest number of frames.

    Returns:
        The strip, uint8 (H, W, 3) RGB.
    """
    row = SheetRow(0, clip, "", "")
    cells = _draw_clip(row, _cell_size(clip.frames[0]), {0: 0}, columns)
    return np.asarray(_beside(cells))


def save_contact_sheet(path: Path, sheet: NDArray[np.uint8]) -> None:
    """Writes a sheet as PNG.

    Args:
        path: Path of the file; its folder is made if it doesn't exist.
        sheet: A sheet from :func:`contact_sheet`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, format="PNG")


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONT, size)


def _evenly(count: int, wanted: int) -> list[int]:
    """Returns at most ``wanted`` of ``count`` positions, first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, wanted))})


def _cell_size(frame: Frame) -> tuple[int, int]:
    """Returns (width, height) of cells: the frame's shape, unless it is extreme."""
    height, width = frame.shape[:2]
    aspect = float(np.clip(width / height, 0.5, 2.0))
    return round(_CELL_HEIGHT * aspect), _CELL_HEIGHT


def _draw_scene(
    scene: Scene,
    cell: tuple[int, int],
    colors: Mapping[int, int],
    names: Mapping[int, str],
) -> Image.Image:
    whole = _whole(scene.frame)
    image, masks = _cut(scene.frame, list(scene.masks.values()), whole, cell)
    image = _paint(image, masks, [colors[i] for i in scene.masks])
    image = _tag(image, masks, scene.masks, colors, names)
    return _number(image, scene.index)


def _draw_clip(
    row: SheetRow, cell: tuple[int, int], colors: Mapping[int, int], columns: int
) -> list[Image.Image]:
    clip = row.clip
    # Short tracks are sampled with repeats; the same frame twice tells nothing.
    distinct = sorted({index: i for i, index in enumerate(clip.frame_indices)}.values())
    chosen = [distinct[i] for i in _evenly(len(distinct), columns)]
    boxes = [box_of_mask(clip.masks[i]) for i in chosen]
    sides = [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in filter(None, boxes)]
    drawn = []
    for i, box in zip(chosen, boxes, strict=True):
        frame = clip.frames[i]
        window = _whole(frame)
        if box is not None:
            largest = (max(w for w, _ in sides), max(h for _, h in sides))
            window = _window(box, largest, frame, cell)
        image, masks = _cut(frame, [clip.masks[i]], window, cell)
        image = _paint(image, masks, [colors[row.object_id]])
        drawn.append(
            _number(image, None if clip.fps is None else clip.frame_indices[i])
        )
    return drawn


def _whole(frame: Frame) -> tuple[int, int, int, int]:
    return 0, 0, frame.shape[1], frame.shape[0]


def _window(
    box: tuple[float, float, float, float],
    largest: tuple[float, float],
    frame: Frame,
    cell: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Computes the crop: around the object, in the cell's shape, inside the frame.

    Args:
        box: Box of the object on this frame, in pixel edges.
        largest: Greatest (width, height) of the object over all frames shown.
        frame: The frame.
        cell: Size of the cell, (width, height).

    Returns:
        The crop in pixel edges.
    """
    height, width = frame.shape[:2]
    aspect = cell[0] / cell[1]
    # Not so close that single pixels of the video show.
    tall = max(largest[1] * _CONTEXT, largest[0] * _CONTEXT / aspect, cell[1] / 4)
    w, h = min(round(tall * aspect), width), min(round(tall), height)
    x1, y1, x2, y2 = box
    left = min(max(round((x1 + x2 - w) / 2), 0), width - w)
    top = min(max(round((y1 + y2 - h) / 2), 0), height - h)
    return left, top, left + max(w, 1), top + max(h, 1)


def _cut(
    frame: Frame,
    masks: Sequence[Mask],
    window: tuple[int, int, int, int],
    cell: tuple[int, int],
) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Crops a window and resizes it to fit into the cell.

    Returns:
        The image and the masks, bool (N, height, width), at the same size.
    """
    x1, y1, x2, y2 = window
    scale = min(cell[0] / (x2 - x1), cell[1] / (y2 - y1))
    size = max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)

    def fit(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        crop = np.ascontiguousarray(pixels[y1:y2, x1:x2])
        return np.asarray(cv2.resize(crop, size, interpolation=method), dtype=np.uint8)

    fitted = [fit(mask.astype(np.uint8) * 255) >= 128 for mask in masks]
    return Image.fromarray(fit(frame)), np.array(fitted, dtype=bool).reshape(
        -1, size[1], size[0]
    )


def _detections(
    masks: NDArray[np.bool_], colors: Sequence[int]
) -> tuple[sv.Detections, list[int]]:
    """Returns the masks that are not empty, for supervision, and their positions."""
    kept = [i for i, mask in enumerate(masks) if mask.any()]
    if not kept:
        return sv.Detections.empty(), []
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(masks[kept]).astype(np.float32),
        mask=masks[kept],
        class_id=np.array([colors[i] for i in kept]),
    ), kept


def _paint(
    image: Image.Image, masks: NDArray[np.bool_], colors: Sequence[int]
) -> Image.Image:
    detections, kept = _detections(masks, colors)
    if not kept:
        return image
    image = sv.MaskAnnotator(color=_PALETTE, opacity=0.4).annotate(image, detections)
    return sv.PolygonAnnotator(color=_PALETTE, thickness=2).annotate(image, detections)


def _tag(
    image: Image.Image,
    masks: NDArray[np.bool_],
    objects: Mapping[int, Mask],
    colors: Mapping[int, int],
    names: Mapping[int, str],
) -> Image.Image:
    """Names the objects of a scene."""
    detections, kept = _detections(masks, [colors[i] for i in objects])
    if not kept:
        return image
    shown = [list(objects)[i] for i in kept]
    tags = sv.RichLabelAnnotator(
        color=_PALETTE,
        text_color=_ON_PALETTE,
        font_path=str(_FONT),
        font_size=_TAG_SIZE,
        text_padding=4,
        smart_position=True,
    )
    labels = [_shorten(names.get(i, f"#{i}"), 24) for i in shown]
    return tags.annotate(image, detections, labels=labels)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _number(image: Image.Image, index: int | None) -> Image.Image:
    """Writes the frame's number, counted from 1, into the lower left corner."""
    if index is None:
        return image
    draw = ImageDraw.Draw(image, "RGBA")
    font = _font(_TAG_SIZE)
    text, corner = str(index + 1), (6, image.height - 6)
    left, top, right, bottom = draw.textbbox(corner, text, font=font, anchor="ls")
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=(0, 0, 0, 150))
    draw.text(corner, text, font=font, anchor="ls", fill="white")
    return image


def _support(clip: RegionClip) -> str:
    if clip.fps is None:
        return ""
    first, last = clip.support
    seconds = (last - first + 1) / clip.fps
    return f"frames {first + 1}–{last + 1}, {seconds:.1f} s"


def _scene_note(scenes: Sequence[Scene]) -> str:
    objects = len({i for scene in scenes for i in scene.masks})
    return f"{objects} object{'' if objects == 1 else 's'}" if scenes else ""


def _plain(text: str) -> str:
    """Removes line breaks and control characters from a text."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    return " ".join(words)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks text into lines of at most ``width`` pixels.

    At spaces; inside a word only where the word alone is too long for a line, as in
    scripts that write without spaces.
    """
    lines = [""]
    for word in _plain(text).split():
        line = f"{lines[-1]} {word}".strip()
        if font.getlength(line) <= width:
            lines[-1] = line
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line]


def _text(title: str, note: str, body: str, color: str | None) -> Image.Image:
    """Returns the left side of a band."""
    indent = 0 if color is None else _TITLE_SIZE + 8
    title_font = _font(_TITLE_SIZE)
    text_font = _font(_TEXT_SIZE)
    # (text, font, color, x) of each line, from the top
    lines = [
        (line, title_font, _INK, indent)
        for line in _wrap(title, title_font, _TEXT_WIDTH - indent)
    ]
    lines += [(line, text_font, _FAINT, 0) for line in _wrap(note, text_font, 9999)]
    lines += [
        (line, text_font, _INK, 0) for line in _wrap(body, text_font, _TEXT_WIDTH)
    ]
    heights = [round(font.size * _LINE) for _, font, _, _ in lines]
    while sum(heights) > _MAX_ROW_HEIGHT:
        heights.pop()
    if len(heights) < len(lines):
        last, *rest = lines[len(heights) - 1]
        lines = [*lines[: len(heights) - 1], (last[:-1] + "…", *rest)]

    image = Image.new("RGB", (_TEXT_WIDTH, max(sum(heights), 1)), _PAPER)
    draw = ImageDraw.Draw(image)
    if color is not None:
        side = _TITLE_SIZE
        draw.rounded_rectangle((0, 2, side - 1, side + 1), radius=4, fill=color)
    y = 0
    for (line, font, ink, x), height in zip(lines, heights, strict=True):
        draw.text((x, y), line, font=font, fill=ink)
        y += height
    return image


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images from left to right, with gaps between."""
    width = sum(image.width + _GAP for image in images) - _GAP
    row = Image.new("RGB", (width, max(image.height for image in images)), _PAPER)
    x = 0
    for image in images:
        row.paste(image, (x, 0))
        x += image.width + _GAP
    return row


def _stack(bands: Sequence[Image.Image]) -> Image.Image:
    """Bands from top to bottom, with a hairline between."""
    width = max(band.width for band in bands) + 2 * _GAP
    height = sum(band.height + 2 * _GAP for band in bands)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = 0
    for band in bands:
        if y:
            draw.line((_GAP, y, width - _GAP, y), fill="#dddddd")
        sheet.paste(band, (_GAP, y + _GAP))
        y += band.height + 2 * _GAP
    return sheet
