from __future__ import annotations

import os
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.video.prefetch import prefetch
from fiftyone_regioncap.video.reader import VideoReader, read_metadata
from tests.support.videos import number_of, numbered, with_matrix, write_video

COUNT = 60
PLAIN = [numbered(number) for number in range(COUNT)]

FILES: dict[str, Callable[[Path], Path]] = {
    "b_frames": lambda folder: write_video(
        folder / "b.mp4", PLAIN, bf="3", g="25", **{"x264-params": "scenecut=0"}
    ),
    "open_gop": lambda folder: write_video(
        folder / "open.mp4",
        PLAIN,
        bf="3",
        g="12",
        **{"x264-params": "open-gop=1:scenecut=0:bframes=3"},
    ),
    "gradual_refresh": lambda folder: write_video(
        folder / "refresh.mkv",
        PLAIN,
        g="12",
        bf="0",
        **{"x264-params": "intra-refresh=1:keyint=12:scenecut=0"},
    ),
    "open_gop_mpeg2_ts": lambda folder: write_video(
        folder / "open.ts", PLAIN, codec="mpeg2video", bf="2", g="12"
    ),
    "h264_ts": lambda folder: write_video(folder / "h.ts", PLAIN, bf="2", g="12"),
    "variable_rate": lambda folder: write_video(
        folder / "vfr.mp4",
        PLAIN,
        times=np.cumsum([10 + (n * 37) % 190 for n in range(COUNT)]).tolist(),
        bf="2",
        g="20",
    ),
    "late_start": lambda folder: write_video(
        folder / "late.mkv", PLAIN, times=[5000 + 40 * n for n in range(COUNT)], g="20"
    ),
    "vp8_hidden_frames": lambda folder: write_video(
        folder / "v8.webm",
        PLAIN,
        codec="libvpx",
        g="20",
        **{"auto-alt-ref": "1", "lag-in-frames": "16", "b": "500k"},
    ),
    "vp9_superframes": lambda folder: write_video(
        folder / "v9.webm",
        PLAIN,
        codec="libvpx-vp9",
        g="20",
        **{"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "b": "500k"},
    ),
    "avi_without_time_stamps": lambda folder: write_video(
        folder / "x.avi", PLAIN, codec="mpeg4", bf="2", g="12", b="800k"
    ),
    "avi_h264": lambda folder: write_video(folder / "h.avi", PLAIN, bf="2", g="12"),
    "raw_stream": lambda folder: write_video(folder / "raw.h264", PLAIN, bf="2", g="9"),
    "every_frame_a_key": lambda folder: write_video(
        folder / "m.mov", PLAIN, codec="mjpeg", pixels="yuvj420p", b="4M"
    ),
    "fragmented": lambda folder: write_video(
        folder / "f.mp4",
        PLAIN,
        bf="2",
        g="12",
        container_options={"movflags": "frag_keyframe+empty_moov"},
    ),
    "with_sound": lambda folder: write_video(folder / "s.mp4", PLAIN, audio=True),
    "hevc": lambda folder: write_video(
        folder / "hevc.mp4",
        PLAIN,
        codec="libx265",
        **{"x265-params": "open-gop=1:keyint=12:bframes=3:log-level=none"},
    ),
    "fast_start": lambda folder: write_video(
        folder / "fast.mp4",
        PLAIN,
        bf="2",
        g="12",
        container_options={"movflags": "faststart"},
    ),
    "b_frames_mkv": lambda folder: write_video(folder / "b.mkv", PLAIN, bf="2", g="12"),
    "flv": lambda folder: write_video(folder / "h.flv", PLAIN, bf="2", g="12"),
    "mpeg_program_stream": lambda folder: write_video(
        folder / "m.mpg", PLAIN, codec="mpeg2video", bf="2", g="12"
    ),
    "wmv": lambda folder: write_video(folder / "w.wmv", PLAIN, codec="wmv2", b="2M"),
    "3gp": lambda folder: write_video(folder / "p.3gp", PLAIN, codec="mpeg4", b="2M"),
    "gif": lambda folder: write_video(
        folder / "g.gif", PLAIN, codec="gif", pixels="rgb8"
    ),
    "one_frame": lambda folder: write_video(folder / "one.mp4", PLAIN[:1]),
}


@pytest.fixture(scope="module", params=sorted(FILES))
def video(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    return FILES[request.param](tmp_path_factory.mktemp(request.param))


def orders(count: int) -> dict[str, list[int]]:
    return {
        "forward": list(range(count)),
        "backward": list(range(count))[::-1],
        "random": np.random.default_rng(1).permutation(count)[:25].tolist(),
        "strides": list(range(0, count, 7)) + list(range(count - 1, -1, -9)),
    }


@pytest.mark.parametrize("order", sorted(orders(1)))
@pytest.mark.parametrize("cache_frames", [1, 8])
def test_frames_are_exact_in_any_order(
    video: Path, order: str, cache_frames: int
) -> None:
    with VideoReader(video, cache_frames=cache_frames) as reader:
        expected = 1 if video.name == "one.mp4" else COUNT
        assert len(reader) == expected
        for index in orders(expected)[order]:
            assert number_of(reader[index]) == index


def test_every_way_to_a_frame_gives_the_same_pixels(video: Path) -> None:
    with VideoReader(video) as reader:
        in_order = [frame.copy() for frame in reader]
    with VideoReader(video, cache_frames=1) as reader:
        for index in orders(len(in_order))["random"]:
            assert np.array_equal(reader[index], in_order[index])


def test_read_gives_each_frame_once_in_order(video: Path) -> None:
    with VideoReader(video) as reader:
        wanted = [5, 0, 40, 5, 39] if len(reader) > 1 else [0, 0]
        got = [(index, number_of(frame)) for index, frame in reader.read(wanted)]
    assert got == [(index, index) for index in sorted(set(wanted))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FILES["b_frames"](tmp_path_factory.mktemp("plain"))


def test_metadata_of_a_file(plain: Path) -> None:
    metadata = read_metadata(plain)
    assert metadata.size_bytes == plain.stat().st_size
    assert metadata.mime_type == "video/mp4"
    assert (metadata.frame_width, metadata.frame_height) == (128, 96)
    assert metadata.frame_rate == 25
    assert metadata.total_frame_count == COUNT
    assert metadata.duration == pytest.approx(COUNT / 25)
    assert metadata.encoding_str == "avc1"


def test_the_rate_of_a_variable_rate_file_is_its_mean(tmp_path: Path) -> None:
    times = [0, 10, 20, 500, 510, 520, 1000]
    path = write_video(tmp_path / "v.mkv", PLAIN[: len(times)], times=times)
    metadata = read_metadata(path)
    assert metadata.total_frame_count == len(times)
    assert metadata.frame_rate == pytest.approx(7 / 1.0, rel=0.1)
    assert metadata.frame_rate * metadata.duration == pytest.approx(7)


def test_the_header_frame_count_is_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "m.avi", PLAIN, codec="mjpeg", pixels="yuvj420p")
    content = bytearray(path.read_bytes())
    # dwTotalFrames of the main header, dwLength of the stream header.
    main = content.index(b"avih") + 8 + 16
    stream = content.index(b"strh") + 8 + 32
    for place in (main, stream):
        assert int.from_bytes(content[place : place + 4], "little") == COUNT
        content[place : place + 4] = (7).to_bytes(4, "little")
    path.write_bytes(content)
    with VideoReader(path) as reader:
        assert [number_of(frame) for frame in reader] == list(range(COUNT))


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # clockwise
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
    ids=["none", "90", "180", "270", "mirrored", "upside_down", "transposed"],
)
def test_the_display_matrix_is_applied(
    tmp_path: Path,
    matrix: tuple[int, int, int, int],
    shown: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    path = with_matrix(write_video(tmp_path / "r.mp4", PLAIN[:5]), matrix)
    expected = shown(PLAIN[3])
    with VideoReader(path) as reader:
        image = reader[3]
        assert (reader.height, reader.width, 3) == image.shape == expected.shape
        assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected).mean() < 6
    metadata = read_metadata(path)
    assert (metadata.frame_height, metadata.frame_width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("width", "height"), [(129, 97), (131, 96), (128, 99)], ids=str
)
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    images = [numbered(number, height, width) for number in range(20)]
    path = write_video(tmp_path / "odd.mp4", images, pixels="yuv444p")
    with VideoReader(path) as reader:
        assert (reader.width, reader.height) == (width, height)
        for index in (19, 0, 7):
            assert reader[index].shape == (height, width, 3)
            assert np.abs(reader[index].astype(int) - images[index]).mean() < 6


def test_a_stream_cut_out_of_an_open_gop_starts_at_its_first_whole_frame(
    tmp_path: Path,
) -> None:
    whole = FILES["open_gop"](tmp_path)
    part = tmp_path / "part.mkv"
    with av.open(str(whole)) as source, av.open(str(part), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        keys = 0
        for packet in source.demux(stream):
            keys += packet.is_keyframe
            if packet.size and keys >= 2:
                packet.stream = copy
                out.mux(packet)
    with VideoReader(part) as reader:
        numbers = [number_of(reader[index]) for index in range(len(reader))]
    assert numbers == list(range(numbers[0], COUNT))
    assert 0 < numbers[0] < 20


def test_frames_before_the_start_of_an_edit_list_do_not_count(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", PLAIN, bf="2", g="25")
    part = tmp_path / "part.mp4"
    with av.open(str(whole)) as source, av.open(str(part), "w") as out:
        stream = source.streams.video[0]
        out.container_options["avoid_negative_ts"] = "disabled"
        copy = out.add_stream_from_template(stream)
        frame = int(1 / (stream.average_rate * stream.time_base))
        for packet in source.demux(stream):
            if packet.size:
                packet.pts -= 10 * frame
                packet.dts -= 10 * frame
                packet.stream = copy
                out.mux(packet)
    with VideoReader(part) as reader:
        forward = [number_of(image) for image in reader]
        assert forward == list(range(10, COUNT))
        for index in orders(len(reader))["random"]:
            assert number_of(reader[index]) == index + 10


def test_reading_in_order_never_seeks(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoReader(plain, cache_frames=1, backend="pyav") as reader:
        runs = []
        start = reader._pyav._decode_from  # type: ignore[union-attr]
        monkeypatch.setattr(
            reader._pyav, "_decode_from", lambda key: runs.append(key) or start(key)
        )
        for index in range(0, COUNT, 3):
            assert number_of(reader[index]) == index
    assert runs in ([], [0])


def test_stepping_back_decodes_a_cacheful_at_a_time(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoReader(plain, cache_frames=10, backend="pyav") as reader:
        reader[COUNT - 1]
        runs = []
        start = reader._pyav._decode_from  # type: ignore[union-attr]
        monkeypatch.setattr(
            reader._pyav, "_decode_from", lambda key: runs.append(key) or start(key)
        )
        for index in range(COUNT - 2, -1, -1):
            assert number_of(reader[index]) == index
    assert len(runs) == -(-(COUNT - 1) // 10)


@pytest.mark.parametrize("distance", [12, 1000], ids=["many key frames", "one"])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("v.webm", "libvpx"), ("h.mp4", "libx264")],
)
def test_files_are_read_backwards_in_linear_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    codec: str,
    distance: int,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    count = 300
    images = [numbered(number) for number in range(count)]
    options = {"sc_threshold": "0"} if codec == "libx264" else {}
    path = write_video(
        tmp_path / name, images, codec=codec, g=str(distance), b="800k", **options
    )
    with VideoReader(path) as reader:
        forward = [zlib.crc32(frame.tobytes()) for frame in reader]
    with VideoReader(path, cache_frames=12) as reader:
        decoded = 0
        decode = reader._pyav._decode_from  # type: ignore[union-attr]

        def counting(key: int) -> Iterator[Any]:
            nonlocal decoded
            for item in decode(key):
                decoded += 1
                yield item

        monkeypatch.setattr(reader._pyav, "_decode_from", counting)
        for index in range(count - 1, -1, -1):
            assert zlib.crc32(reader[index].tobytes()) == forward[index]
    # From the start for every cache-full, they would be 12 times as many.
    assert decoded <= 3 * count
    assert list(tmp_path.iterdir()) == [path]  # no copy is left behind


def test_a_seek_that_leads_elsewhere_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FILES["avi_h264"](tmp_path)
    with VideoReader(path, cache_frames=1) as reader:
        source = reader._pyav
        assert source is not None and len(source._packets.keys) > 3
        wrong = [
            key._replace(number=max(key.number - 1, 0)) for key in source._packets.keys
        ]
        monkeypatch.setattr(
            source, "_packets", replace(source._packets, keys=tuple(wrong))
        )
        for index in orders(COUNT)["random"]:
            assert number_of(reader[index]) == index


def test_presentation_times(tmp_path: Path) -> None:
    times = [0, 10, 20, 500, 510, 520, 1000]
    path = write_video(tmp_path / "v.mkv", PLAIN[: len(times)], times=times)
    with VideoReader(path) as reader:
        assert reader.timeline.times == pytest.approx(np.array(times) / 1000)
    path = write_video(tmp_path / "v.avi", PLAIN, codec="mpeg4", bf="2")
    with VideoReader(path) as reader:
        assert reader.timeline.times == pytest.approx(np.arange(COUNT) / 25)


def test_a_file_is_indexed_once(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_metadata(plain)
    monkeypatch.setattr(av, "open", lambda *_: pytest.fail("it is opened again"))
    assert read_metadata(plain) == first


@pytest.mark.parametrize("cache_frames", [1, 5, 100])
def test_the_cache_is_bounded(plain: Path, cache_frames: int) -> None:
    with VideoReader(plain, cache_frames=cache_frames) as reader:
        for index in [*range(COUNT), *range(COUNT - 1, -1, -1)]:
            reader[index]
            assert len(reader._cache) <= cache_frames


def test_threads_may_share_a_reader(plain: Path) -> None:
    wrong: list[int] = []
    with VideoReader(plain, cache_frames=2) as reader:

        def work(order: Sequence[int]) -> None:
            wrong.extend(n for n in order if number_of(reader[n]) != n)

        threads = [
            threading.Thread(target=work, args=(order,))
            for order in orders(COUNT).values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("index", [COUNT, -COUNT - 1, 10**6])
def test_numbers_outside_the_video(plain: Path, index: int) -> None:
    with VideoReader(plain) as reader, pytest.raises(IndexError, match=str(index)):
        reader[index]


def test_negative_numbers_count_from_the_end(plain: Path) -> None:
    with VideoReader(plain) as reader:
        assert number_of(reader[-1]) == COUNT - 1


def test_a_closed_reader_says_so(plain: Path) -> None:
    reader = VideoReader(plain)
    reader[0]
    reader.close()
    reader.close()
    with pytest.raises(VideoError, match="closed"):
        reader[0]


# Files that can't be used at all.


def _missing(folder: Path) -> Path:
    return folder / "nowhere.mp4"


def _empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def _text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("no video at all " * 100)
    return folder / "text.mp4"


def _sound(folder: Path) -> Path:
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), "fltp", "mono"
        )
        silence.sample_rate = 16000
        out.mux(stream.encode(silence))
        out.mux(stream.encode(None))
    return path


def _header_only(folder: Path) -> Path:
    path = FILES["fast_start"](folder)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 40])
    return path


def _index_at_the_end_is_gone(folder: Path) -> Path:
    path = FILES["b_frames"](folder)
    path.write_bytes(path.read_bytes()[:-500])
    return path


def _no_images(folder: Path) -> Path:
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_missing, "no such file"),
        (_empty, "is empty"),
        (_pipe, "pipe or a device"),
        (lambda _: Path(os.devnull), "pipe or a device"),
        (_text, "can't|cannot|be opened"),
        (_sound, "no video stream"),
        (_header_only, "cut off before its first frame"),
        (_index_at_the_end_is_gone, "be opened"),
        (_no_images, "no images"),
    ],
)
def test_unusable_files(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(VideoError, match=reason) as caught:
        VideoReader(path)
    assert caught.value.path == str(path)
    assert caught.value.last_good_frame is None


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
@pytest.mark.parametrize("kind", ["fast_start", "b_frames_mkv", "vp9_superframes"])
def test_cut_off_files_give_their_good_frames_and_then_fail(
    tmp_path: Path, kind: str, share: float
) -> None:
    path = FILES[kind](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with VideoReader(path) as reader:
        good = []
        with pytest.raises(VideoError, match="cut off") as caught:
            for frame in reader:
                good.append(number_of(frame))
        assert good == list(range(len(good)))
        assert len(good) >= 3
        assert caught.value.last_good_frame == good[-1]
        # The error doesn't break the reader, and the way to it doesn't matter.
        assert number_of(reader[2]) == 2
        with pytest.raises(VideoError) as caught:
            reader[len(good)]
        assert caught.value.last_good_frame == good[-1]


def test_damage_in_the_middle_is_an_error_of_the_frames_it_hits(tmp_path: Path) -> None:
    path = write_video(tmp_path / "m.mov", PLAIN, codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        place, size = packets[30].pos, packets[30].size
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    with VideoReader(path) as reader:
        assert len(reader) == COUNT
        with pytest.raises(VideoError, match="frame 31") as caught:
            list(reader)
        assert caught.value.last_good_frame == 29
        assert number_of(reader[31]) == 31
        # Backwards in blocks, it is an error of no other frame either.
        for number in (40, *range(35, 30, -1), *range(29, 20, -1)):
            assert number_of(reader[number]) == number
        with pytest.raises(VideoError, match="frame 31"):
            reader[30]


# Image folders.


def _folder(path: Path, names: Sequence[str]) -> Path:
    path.mkdir()
    for rank, name in enumerate(names):
        Image.fromarray(numbered(rank)).save(path / name, quality=95)
    return path


def test_folders_are_videos_in_natural_order(tmp_path: Path) -> None:
    names = [f"frame_{rank}.{'png' if rank % 2 else 'JPG'}" for rank in range(12)]
    folder = _folder(tmp_path / "images", names)
    (folder / "readme.txt").write_text("not a frame")
    (folder / "._frame_0.jpg").write_bytes(b"resource fork")
    with VideoReader(folder, fps=12) as reader:
        assert len(reader) == 12
        assert reader.fps == 12
        assert [number_of(reader[n]) for n in orders(12)["random"]] == orders(12)[
            "random"
        ]
        assert reader.metadata.duration == 1.0
        assert reader.metadata.size_bytes == sum(
            (folder / name).stat().st_size for name in names
        )


def test_a_folder_image_of_another_size(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "images", ["0.png", "1.png", "2.png"])
    Image.fromarray(numbered(2, 100, 140)).save(folder / "2.png")
    with VideoReader(folder) as reader, pytest.raises(VideoError, match="140x100") as e:
        list(reader)
    assert e.value.last_good_frame == 1


def test_a_broken_folder_image(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "images", [f"{number}.png" for number in range(4)])
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    with VideoReader(folder) as reader, pytest.raises(VideoError, match=r"1\.png") as e:
        list(reader)
    assert e.value.last_good_frame == 0
    with VideoReader(folder) as reader:
        assert [number_of(reader[n]) for n in (3, 2, 0)] == [3, 2, 0]


def test_a_folder_without_a_rate_that_makes_sense(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "images", ["0.png"])
    with pytest.raises(ValueError, match="fps"):
        VideoReader(folder, fps=0)


@pytest.mark.parametrize(
    "arguments", [{"fps": 30.0}, {"cache_frames": 0}], ids=["fps_of_a_file", "no_cache"]
)
def test_arguments_that_make_no_sense(plain: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        VideoReader(plain, **arguments)


# Decoding ahead.


def test_prefetch_keeps_order_and_stays_in_bounds() -> None:
    ahead = 0
    most = 0

    def items() -> Iterator[int]:
        nonlocal ahead, most
        for item in range(50):
            ahead += 1
            most = max(most, ahead)
            yield item

    got = []
    for item in prefetch(items(), depth=3):
        time.sleep(0.002)
        ahead -= 1
        got.append(item)
    assert got == list(range(50))
    # Three wait, one is in the making and one in use.
    assert 3 <= most <= 5


def test_prefetch_hands_errors_on_in_their_place() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise VideoError("x.mp4", "broken", 2)

    got = []
    with pytest.raises(VideoError, match="broken"):
        for item in prefetch(items(), depth=8):
            got.append(item)
    assert got == [0, 1, 2]


def test_leaving_prefetch_early_stops_its_thread_and_closes_its_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    before = threading.active_count()
    ahead = prefetch(items(), depth=2)
    assert next(ahead) == 0
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
    assert closed.is_set()
