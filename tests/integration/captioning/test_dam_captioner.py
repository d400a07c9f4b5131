"""The DAM captioner over streams of clips, good and bad."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from fiftyone_regioncap.captioning.confidence import (
    agreement,
    content_minimum,
    short_label,
)
from fiftyone_regioncap.captioning.dam.captioner import (
    DamCaptioner,
    DamVideoCaptioner,
)
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.prompts import IMAGE_PROMPTS, VIDEO_FRAMES
from fiftyone_regioncap.core.errors import BackendError, OptionError, PromptError
from fiftyone_regioncap.core.types import Caption, RegionClip
from tests.support.dam import TINY, write_checkpoint

HEIGHT, WIDTH = 60, 80


@pytest.fixture(scope="module")
def dam(tmp_path_factory: pytest.TempPathFactory) -> DAM:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder)
    return DAM.from_pretrained(folder)


@pytest.fixture
def video(dam: DAM) -> DamCaptioner:
    return DamVideoCaptioner(dam, DamOptions(max_new_tokens=8))


@pytest.fixture
def image(dam: DAM) -> DamCaptioner:
    return DamCaptioner(dam, DamOptions(max_new_tokens=8))


def clip(seed: int, frames: int = 8) -> RegionClip:
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[10:40, 20 + seed % 20 : 50] = True
    return RegionClip(
        frames=[
            rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            for _ in range(frames)
        ],
        masks=[mask] * frames,
        frame_indices=tuple(range(frames)),
    )


def masked(seed: int, **at: np.ndarray) -> RegionClip:
    whole = clip(seed)
    masks = [at.get(f"m{number}", mask) for number, mask in enumerate(whole.masks)]
    return replace(whole, masks=masks)


EMPTY = np.zeros((HEIGHT, WIDTH), dtype=bool)
PIXEL = EMPTY.copy()
PIXEL[0, 0] = True


def same(first: Caption, second: Caption) -> bool:
    """Equal but for rounding: sums run in another order in another batch."""
    return (first.text, first.error, first.tokens) == (
        second.text,
        second.error,
        second.tokens,
    ) and first.confidence == pytest.approx(second.confidence, abs=1e-5)


class TestClips:
    @pytest.mark.parametrize(
        "good",
        [
            pytest.param(clip(1), id="8 frames"),
            pytest.param(clip(2, 1), id="1 frame: the image prompt"),
            pytest.param(clip(3, 3), id="3 frames: shown more than once"),
            pytest.param(clip(4, 30), id="30 frames: 8 of them"),
            pytest.param(masked(5, m0=EMPTY, m3=EMPTY), id="empty on some frames"),
            pytest.param(replace(clip(6), masks=[PIXEL] * 8), id="one pixel"),
            pytest.param(replace(clip(7), masks=[~EMPTY] * 8), id="the whole frame"),
            pytest.param(
                replace(clip(8, 1), frames=[clip(8).frames[0][..., 0]]), id="grey"
            ),
            pytest.param(
                replace(
                    clip(9, 1),
                    frames=[np.dstack([clip(9).frames[0], EMPTY.view("u1")])],
                ),
                id="alpha",
            ),
        ],
    )
    def test_described(
        self, video: DamCaptioner, image: DamCaptioner, good: RegionClip
    ) -> None:
        for captioner in (video, image):
            (caption,) = captioner.caption([good])
            assert caption.error is None
            assert caption.text
            assert 0 < caption.confidence <= 1
            assert 0 < caption.tokens <= 8

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            pytest.param(replace(clip(1), masks=[EMPTY] * 8), "empty", id="no object"),
            pytest.param(masked(2, m5=EMPTY[:9]), "frames' size", id="another size"),
            pytest.param(
                replace(clip(3), masks=[PIXEL]), "one mask", id="masks missing"
            ),
            pytest.param(
                replace(clip(4), frames=[], masks=[]), "one or more", id="none"
            ),
            pytest.param(
                replace(clip(5), frames=[np.zeros((HEIGHT, WIDTH, 3))] * 8),
                "uint8",
                id="float frames",
            ),
        ],
    )
    def test_an_error_of_that_clip_alone(
        self, video: DamCaptioner, bad: RegionClip, reason: str
    ) -> None:
        good = [clip(20), clip(21)]
        alone = video.caption(good)
        first, refused, second = video.caption([good[0], bad, good[1]])
        assert refused.text == "" and reason in refused.error
        assert same(first, alone[0]) and same(second, alone[1])

    def test_a_batch_is_as_good_as_one_at_a_time(self, video: DamCaptioner) -> None:
        clips = [clip(n, frames) for n, frames in enumerate([8, 1, 3, 8, 8, 2, 1, 8])]
        together = video.caption(clips)
        for one, caption in zip(clips, together, strict=True):
            assert same(video.caption([one])[0], caption)

    def test_the_image_model_sees_the_biggest_mask(self, image: DamCaptioner) -> None:
        big = np.ones((HEIGHT, WIDTH), dtype=bool)
        several = masked(3, m4=big)
        alone = replace(several, frames=several.frames[4:5], masks=[big])
        assert same(*image.caption([several, alone]))

    def test_the_label_of_the_clip_stays(self, video: DamCaptioner) -> None:
        (caption,) = video.caption([replace(clip(1), label="bird")])
        assert caption.label == "bird"


class TestPrompts:
    def test_named_and_free(self, image: DamCaptioner) -> None:
        one = clip(1, 1)
        (plain,) = image.caption([one])
        for prompt in ("detailed", IMAGE_PROMPTS["detailed"]):
            assert same(image.caption([one], prompt=prompt)[0], plain)
        tagged = "<image>\n" + IMAGE_PROMPTS["detailed"]
        assert same(image.caption([one], prompt=tagged)[0], plain)
        assert not same(image.caption([one], prompt="What is it?")[0], plain)

    def test_tags_are_counted(self, video: DamCaptioner) -> None:
        one = clip(1)
        right = "<image>" * VIDEO_FRAMES + "\nWhat is it?"
        assert video.caption([one], prompt=right)[0].error is None
        wrong = video.caption([one], prompt="<image> What is it?")[0]
        assert "1 <image> tags for 8 images" in wrong.error

    def test_longer_than_the_context(self, video: DamCaptioner) -> None:
        (caption,) = video.caption([clip(1)], prompt="why " * 3000)
        assert "shorten the text" in caption.error

    def test_streaming(self, video: DamCaptioner) -> None:
        pieces = list(video.stream(clip(1)))
        assert "".join(pieces).strip() == video.caption([clip(1)])[0].text
        with pytest.raises(PromptError):
            next(video.stream(replace(clip(1), masks=[EMPTY] * 8)))


class TestStream:
    def test_tells_what_is_being_written(self, video: DamCaptioner) -> None:
        told: list[str] = []
        (caption,) = video.caption_stream([clip(1)], on_token=told.append)
        assert len(told) > 1 and told[0] != told[-1]
        assert all(b.startswith(a) for a, b in itertools.pairwise(told))
        assert caption.text.startswith(told[-1])

    def test_tells_of_the_captions_in_turn(self, video: DamCaptioner) -> None:
        told: list[str] = []
        for caption in video.caption_stream(
            [clip(n) for n in range(4)], on_token=told.append
        ):
            if told:  # those that ended before their turn are not told of
                assert caption.text.startswith(told[-1])
            told.clear()

    def test_in_order_and_endless(self, video: DamCaptioner) -> None:
        clips = [clip(n, 1) for n in range(5)]
        expected = video.caption(clips)
        endless = video.caption_stream(itertools.cycle(clips))
        for caption, wanted in zip(endless, expected * 4, strict=False):
            assert same(caption, wanted)
        endless.close()
        # The captioner is free again, and no thread is left.
        assert same(video.caption(clips[:1])[0], expected[0])
        assert not [t for t in threading.enumerate() if t.name.startswith("regioncap")]

    def test_looks_a_bounded_number_ahead(self, dam: DAM) -> None:
        captioner = DamCaptioner(dam, DamOptions(max_new_tokens=2, rows=2, workers=1))
        fetched = 0

        def source() -> Iterator[RegionClip]:
            nonlocal fetched
            one = clip(1, 1)
            for _ in range(200):
                fetched += 1
                yield one

        for given, _ in enumerate(captioner.caption_stream(source()), start=1):
            assert fetched - given < 40
        assert given == 200

    def test_two_streams_at_the_same_time(self, video: DamCaptioner) -> None:
        clips = [clip(n, 1 + 7 * (n % 2)) for n in range(6)]
        expected = video.caption(clips)
        streams = video.caption_stream(clips), video.caption_stream(clips[::-1])
        for (one, two), wanted, other in zip(
            zip(*streams, strict=True), expected, expected[::-1], strict=True
        ):
            assert same(one, wanted) and same(two, other)

    def test_an_error_of_the_source_comes_through(self, video: DamCaptioner) -> None:
        def source() -> Iterator[RegionClip]:
            yield clip(1, 1)
            raise RuntimeError("the video broke")

        stream = video.caption_stream(source())
        assert next(stream).text
        with pytest.raises(RuntimeError, match="the video broke"):
            next(stream)

    @pytest.mark.slow
    def test_ten_thousand_tracks_in_flat_memory(self, tmp_path: Path) -> None:
        write_checkpoint(
            tmp_path, replace(TINY, image=replace(TINY.image, size=28), used_layers=1)
        )
        dam = DAM.from_pretrained(tmp_path)
        captioner = DamCaptioner(dam, DamOptions(max_new_tokens=1, rows=16))
        process = psutil.Process()
        early = 0

        def source() -> Iterator[RegionClip]:
            for number in range(10_000):
                # A new frame every ten tracks, as of a long video.
                if number % 10 == 0:
                    frame = np.full((240, 320, 3), number % 255, dtype=np.uint8)
                mask = np.zeros((240, 320), dtype=bool)
                mask[100:200, 100:200] = True
                yield RegionClip([frame], [mask])

        for number, caption in enumerate(captioner.caption_stream(source())):
            assert caption.tokens == 1 or caption.error
            if number == 1000:
                early = process.memory_info().rss
        assert number == 9_999
        assert process.memory_info().rss - early < 50 << 20


class Scarce:
    """An allocator that has no memory for more than so many images or rows."""

    def __init__(self, dam: DAM, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.failures = 0
        engine = dam.engine

        def scarce(rows: int) -> object:
            if rows > most:
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return engine(rows)

        monkeypatch.setattr(dam, "engine", scarce)


class TestMemory:
    @pytest.mark.parametrize("most", [1, 3, 7])
    def test_half_as_many_until_they_fit(
        self, dam: DAM, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        clips = [clip(n, 1 + 7 * (n % 2)) for n in range(9)]
        expected = DamVideoCaptioner(dam, DamOptions(max_new_tokens=6)).caption(clips)
        scarce = Scarce(dam, monkeypatch, most)
        captioner = DamVideoCaptioner(dam, DamOptions(max_new_tokens=6, rows=8))
        for ours, wanted in zip(captioner.caption(clips), expected, strict=True):
            assert same(ours, wanted)
        assert scarce.failures >= 1

    def test_a_clip_that_never_fits(
        self, dam: DAM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Scarce(dam, monkeypatch, 0)
        captioner = DamCaptioner(dam, DamOptions(max_new_tokens=6))
        for caption in captioner.caption([clip(1), clip(2)]):
            assert "doesn't fit into memory" in caption.error

    def test_rows_by_free_memory(
        self, dam: DAM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert dam.rows_that_fit(200, 8) == 8
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: type("", (), {"available": 500_000})
        )
        # 2 layers x 2 x 2 heads x 16 x 256 tokens x 4 bytes is 131,072 bytes a row.
        assert dam.rows_that_fit(200, 8) == 2
        assert dam.rows_that_fit(100_000, 8) == 1


class TestSamples:
    def test_the_most_typical_one_with_its_agreement(self, dam: DAM) -> None:
        options = {"max_new_tokens": 8, "temperature": 0.9, "top_p": 1.0}
        several = DamOptions(samples=3, rows=4, **options)
        captioner = DamVideoCaptioner(dam, several)
        clips = [clip(n) for n in range(3)]
        first = captioner.caption(clips)
        again = captioner.caption(clips[::-1])[::-1]
        for one, two in zip(first, again, strict=True):
            assert same(one, two)
            assert 0 <= one.agreement <= 1
        drawn = {
            DamVideoCaptioner(dam, DamOptions(seed=seed, **options))
            .caption(clips[:1])[0]
            .text
            for seed in range(3)
        }
        assert first[0].text in drawn

    @pytest.mark.parametrize(
        "options",
        [
            {"samples": 3},  # at temperature 0 all the same
            {"samples": 0},
            {"temperature": -1.0},
            {"temperature": float("nan")},
            {"top_p": 0.0},
            {"top_k": -1},
            {"max_new_tokens": 0},
        ],
    )
    def test_impossible_options(self, options: dict) -> None:
        with pytest.raises(OptionError, match=next(iter(options))):
            DamOptions(**options)


class TestLoading:
    def test_says_what_it_is(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path)
        captioner = DamVideoCaptioner.from_pretrained(tmp_path, device="cpu")
        info = captioner.info
        assert (info.name, info.frames, info.model) == ("dam-video", 8, tmp_path.name)
        assert len(info.revision) == 64
        assert captioner.dam.dtype == torch.float32
        write_checkpoint(tmp_path, seed=1)
        other = DamCaptioner.from_pretrained(
            tmp_path, device="cpu", options=DamOptions(dtype="bfloat16")
        )
        assert (other.info.name, other.info.frames) == ("dam", 1)
        assert other.info.revision != info.revision
        assert other.dam.dtype == torch.bfloat16

    def test_impossible_choices(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path)
        with pytest.raises(OptionError, match="one of float32"):
            DamOptions(dtype="int8")
        if not torch.cuda.is_available():
            with pytest.raises(BackendError, match="no CUDA device"):
                DamCaptioner.from_pretrained(tmp_path, device="cuda")


class TestConfidence:
    @pytest.mark.parametrize(
        ("pieces", "probabilities", "lowest"),
        [
            # "the" is the least likely word, but says nothing
            (["▁the", "▁red", "▁car"], [0.1, 0.9, 0.8], 0.8),
            # a word is as likely as its least likely piece
            (["▁a", "▁um", "bre", "lla", "."], [0.9, 0.8, 0.3, 0.9, 0.1], 0.3),
            # punctuation inside and at the end
            (["▁car", ",", "▁is", "▁blue", "."], [0.7, 0.1, 0.1, 0.9, 0.1], 0.7),
            (["▁it", "▁is"], [0.5, 0.5], None),
            ([], [], None),
        ],
    )
    def test_content_words(
        self, pieces: list[str], probabilities: list[float], lowest: float | None
    ) -> None:
        assert content_minimum(pieces, probabilities) == lowest

    def test_agreement(self) -> None:
        texts = ["a red car", "the blue bus", "a red bus"]
        assert agreement(texts) == (2, pytest.approx(1 / 3))
        assert agreement(["a cat", "the cat"]) == (0, 1.0)

    @pytest.mark.parametrize(
        ("text", "label"),
        [
            ("A white cat with black spots sits on a wall.", "white cat"),
            ("The object is a bird.", "object"),
            ("Brown dog.", "brown dog"),
            (
                "A very large old rusty red metal gate, half open.",
                "rusty red metal gate",
            ),
            ("一只白色的猫坐在墙上。", "白色的猫"),
            ("这是一辆红色的公共汽车，停在路边", "红色的公共汽车"),
            ("白い猫が壁の上に座っている。", "白い猫"),
            ("猫" * 300, "猫" * 8),
            ("A cat of 白 spots.", "cat"),
            ("...", None),
            ("", None),
        ],
    )
    def test_short_labels(self, text: str, label: str | None) -> None:
        assert short_label(text) == label
