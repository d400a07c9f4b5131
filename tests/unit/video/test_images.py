from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.video.image_source import images_in, write_list
from fiftyone_regioncap.video.images import load_image
from fiftyone_regioncap.video.reader import VideoReader


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(
    ("values", "kind"), [([0, 128, 255], np.uint8), ([0, 32896, 65535], np.uint16)]
)
def test_gray_images_keep_their_shades(
    tmp_path: Path, suffix: str, values: list[int], kind: type
) -> None:
    path = tmp_path / f"gray.{suffix}"
    Image.fromarray(np.array([values], dtype=kind)).save(path)
    assert load_image(path).tolist() == [[[v] * 3 for v in (0, 128, 255)]]


def test_an_image_of_more_pixels_than_pillow_allows(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    with pytest.raises(OSError, match="MAX_IMAGE_PIXELS"):
        load_image(tmp_path / "large.png")


NAMES = ("a\u2028b.png", "c\x85d.png", "e\rf.png", "g\nh\n.png", "i\tj\udcff.png")


def test_lists_of_images_of_any_name(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in (*NAMES, "missing.png")]
    for shade, file in enumerate(files[:-1]):
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(file)
    write_list(tmp_path / "list.frames", files)
    with VideoReader(tmp_path / "list.frames") as reader:
        assert [int(reader[n].mean()) for n in range(len(NAMES))] == [*range(5)]
        with pytest.raises(VideoError, match=r"missing\.png"):
            reader[len(NAMES)]


def test_digits_that_are_no_numbers_in_names(tmp_path: Path) -> None:
    names = ["1²2.png", "2.png", "10.png", "2³.png"]
    for name in names:
        (tmp_path / name).touch()
    ordered = ["1²2.png", "2.png", "2³.png", "10.png"]
    assert [file.name for file in images_in(tmp_path)] == ordered
