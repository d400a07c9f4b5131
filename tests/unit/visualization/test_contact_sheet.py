"""The contact sheet shows every track, its words and its masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap.core.types import Mask, RegionClip
from fiftyone_regioncap.visualization.contact_sheet import (
    Scene,
    SheetRow,
    contact_sheet,
    save_contact_sheet,
)

GREY = 128
ORANGE = (0xE6, 0x9F, 0x00)
BLUE = (0x56, 0xB4, 0xE9)


def box_mask(height: int, width: int, x: int = 20, y: int = 10, side: int = 12) -> Mask:
    mask = np.zeros((height, width), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def clip(
    height: int = 90,
    width: int = 160,
    indices: tuple[int, ...] = (0, 3, 7),
    fps: float | None = 30.0,
    empty: bool = False,
) -> RegionClip:
    mask = np.zeros((height, width), bool) if empty else box_mask(height, width)
    return RegionClip(
        frames=[np.full((height, width, 3), GREY, np.uint8) for _ in indices],
        masks=[mask for _ in indices],
        frame_indices=indices,
        fps=fps,
        support=(indices[0], indices[-1]),
    )


def row(object_id: int = 1, text: str = "A grey square.", **shape) -> SheetRow:
    return SheetRow(object_id, clip(**shape), f"#{object_id}", text)


def has(sheet: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((sheet == np.array(color, np.uint8)).all(axis=-1).any())


@pytest.mark.parametrize(
    "sheet_row",
    [
        pytest.param(row(), id="a video"),
        pytest.param(row(height=1920, width=1080), id="portrait, larger than a cell"),
        pytest.param(row(height=40, width=900), id="extreme shape"),
        pytest.param(row(height=2, width=2), id="smaller than the window"),
        pytest.param(row(indices=(5,)), id="one frame"),
        pytest.param(row(indices=(5, 5, 5, 5)), id="one frame, repeated"),
        pytest.param(row(fps=None, indices=(0,)), id="an image"),
        pytest.param(row(empty=True), id="empty masks"),
        pytest.param(row(text=""), id="no words"),
        pytest.param(row(text="word " * 2000), id="more words than fit"),
        pytest.param(row(text="x" * 3000), id="a word longer than a line"),
        pytest.param(row(text="größer – 日本\r\n\x00\x1b[31m 🐕 עב"), id="any script"),
    ],
)
def test_any_row_is_drawn(sheet_row: SheetRow) -> None:
    scene = Scene(sheet_row.clip.frames[0], {1: sheet_row.clip.masks[0]}, 0)
    sheet = contact_sheet([sheet_row], [scene], title="clip.mp4")
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert max(sheet.shape) < 4000


def test_object_keeps_its_color_in_rows_and_scenes() -> None:
    first, second = row(7), row(3)
    scene = Scene(first.clip.frames[0], {3: box_mask(90, 160)}, 4)
    rows_only = contact_sheet([first, second])
    assert has(rows_only, ORANGE) and has(rows_only, BLUE)
    # Object 3 is the second row's, so its mask on the scene is blue too.
    scene_band = contact_sheet([first, second], [scene])
    above = scene_band[: scene_band.shape[0] - rows_only.shape[0]]
    assert has(above, BLUE) and not has(above, ORANGE)


def test_windows_of_one_track_share_its_color() -> None:
    windows = contact_sheet([row(7), row(7), row(3)])
    band = windows.shape[0] // 3
    assert has(windows[band : 2 * band], ORANGE)
    assert has(windows[2 * band :], BLUE)


def test_mask_lies_where_the_object_is() -> None:
    frame = np.full((200, 400, 3), GREY, np.uint8)
    mask = np.zeros((200, 400), bool)
    mask[50:150, 300:380] = True
    sheet = contact_sheet([], [Scene(frame, {1: mask})])
    picture = sheet[12:212, -412:-12]  # the one cell, at its own size
    tinted = (picture.astype(int) != GREY).any(axis=-1)
    # Outline and tag reach a little over the mask; the far side stays untouched.
    assert tinted[mask].all()
    assert not tinted[:, :240].any()


def test_scenes_do_not_change_their_frames() -> None:
    frame = np.full((90, 160, 3), GREY, np.uint8)
    shown = row()
    contact_sheet([shown], [Scene(frame, {1: box_mask(90, 160)}, 0)])
    assert (frame == GREY).all()
    assert all((f == GREY).all() for f in shown.clip.frames)


def test_columns_bound_the_width() -> None:
    many = row(indices=tuple(range(8)))
    widths = [contact_sheet([many], columns=n).shape[1] for n in (1, 2, 4, 8, 20)]
    assert widths[0] < widths[1] < widths[2] < widths[3] == widths[4]


@pytest.mark.parametrize(
    ("rows", "columns"),
    [pytest.param([], 4, id="nothing"), pytest.param([row()], 0, id="no column")],
)
def test_nothing_to_draw_is_an_error(rows: list[SheetRow], columns: int) -> None:
    with pytest.raises(ValueError, match="give"):
        contact_sheet(rows, columns=columns)


def test_saved_sheet_is_the_sheet(tmp_path: Path) -> None:
    sheet = contact_sheet([row()])
    path = tmp_path / "new folder" / "sheet.png"
    save_contact_sheet(path, sheet)
    assert (np.asarray(Image.open(path)) == sheet).all()
