"""MobileSAM's propagation on real clips and on squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.core.types import Prompt, box_of_mask
from fiftyone_regioncap.evaluation.masks import region_similarity
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.mobilesam.labels import shrink
from fiftyone_regioncap.propagation.mobilesam.propagator import MobileSamPropagator
from fiftyone_regioncap.propagation.mobilesam.refining import refine
from fiftyone_regioncap.propagation.mobilesam.searching import searched
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, MobileSam, Part
from fiftyone_regioncap.propagation.mobilesam.settings import Settings

SMALL = Settings(side=512)


def same(a, b):
    assert (a.frame, a.prompted, a.objects.keys()) == (
        b.frame,
        b.prompted,
        b.objects.keys(),
    )
    for k, found in a.objects.items():
        assert found.score == b.objects[k].score
        assert (found.mask is None) == (b.objects[k].mask is None)
        assert np.array_equal(found.mask, b.objects[k].mask)


@pytest.mark.parametrize("kind", ["mask", "box", "points"])
@pytest.mark.parametrize("name", ["car-shadow", "soccerball"])
def test_it_follows_real_objects(mobile_sam, clip_of, name, kind):
    clip = clip_of(name, 6)
    truth = clip.masks[0] == 1
    x1, y1, x2, y2 = box_of_mask(truth)
    inside = np.argwhere(truth).mean(axis=0)[::-1]
    prompt = {
        "mask": Prompt(7, 0, mask=truth),
        "box": Prompt(7, 0, box=(x1, y1, x2, y2)),
        "points": Prompt(
            7, 0, box=(x1, y1, x2, y2),
            points=np.array([inside, [2.0, 2.0]]),
            point_signs=np.array([True, False]),
        ),
    }[kind]  # fmt: skip
    propagator = MobileSamPropagator(mobile_sam, SMALL)
    results = list(propagator.propagate(PropagationRequest(clip, [prompt])))
    assert [r.frame for r in results] == list(range(6))
    assert [r.prompted for r in results] == [{7}] + [frozenset()] * 5
    values = [
        region_similarity(r.objects[7].mask, clip.masks[r.frame] == 1) for r in results
    ]
    assert np.mean(values) > 0.75
    if kind == "mask":
        assert values[0] == 1


def test_a_part_is_encoded_as_in_the_whole_frame(mobile_sam, clip_of):
    frame = clip_of("rollerblade", 1)[0]
    grid = Grid(*frame.shape[:2], 768)
    whole = mobile_sam.encode_stages(frame, side=768)

    def alike(part):
        alone = mobile_sam.encode_stages(frame, side=768, part=part).stage
        expected = whole.stage[(slice(None), *part.slices())]
        inner = (..., slice(3, -3), slice(3, -3))  # convolutions see over the edges
        return float(torch.cosine_similarity(alone[inner], expected[inner], 0).mean())

    label = torch.zeros(grid.whole.shape, dtype=torch.uint8)
    label[4:9, 20:37] = 255
    part = searched([label.flatten()[:, None]], grid, 5)
    assert part == Part(range(14), range(14, 42))  # whole windows of all stages
    aside = Part(range(3, 17), range(11, 39))
    assert alike(part) > 0.98 > alike(aside) + 0.02


def test_a_torn_vote_is_uncertain(mobile_sam, clip_of):
    clip = clip_of("car-shadow", 1)
    grid = Grid(clip.height, clip.width, 512)
    encoding = mobile_sam.encode_stages(clip[0], side=512)
    carried = torch.from_numpy(shrink(clip.masks[0] == 1, grid) > 0.5).float()
    soft = torch.stack([carried, 0.6 * carried])
    targets = torch.zeros(2, 256)
    sure, torn = refine(mobile_sam, encoding, grid, soft, targets, SMALL)
    assert sure.certainty == pytest.approx(1)
    assert torn.certainty == pytest.approx(0.2)
    assert np.array_equal(sure.mask, torn.mask)


@pytest.mark.parametrize("overlap", [False, True])
def test_objects_share_frames_not_pixels(mobile_sam, clip_of, overlap):
    clip = clip_of("dogs-jump", 5)
    prompts = [Prompt(10 * n, 0, mask=clip.masks[0] == n) for n in (1, 2, 3)]
    # An object inside another, so that they compete.
    prompts.append(Prompt(99, 0, box=box_of_mask(clip.masks[0] == 3)))
    propagator = MobileSamPropagator(mobile_sam, SMALL)
    run = propagator.propagate(PropagationRequest(clip, prompts, overlap=overlap))
    shared = 0
    for result in run:
        assert set(result.objects) == {10, 20, 30, 99}
        masks = [o.mask for o in result.objects.values() if o.mask is not None]
        shared += int((np.sum(masks, axis=0) > 1).sum())
    assert (shared > 0) == overlap


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_resume_at_any_frame_changes_nothing(mobile_sam, clip_of, direction):
    clip = clip_of("dogs-jump", 6)
    prompts = [
        Prompt(1, 2, mask=clip.masks[2] == 1),
        Prompt(3, 3, box=box_of_mask(clip.masks[3] == 3)),
        Prompt(3, 4, mask=clip.masks[4] == 3),
    ]
    propagator = MobileSamPropagator(mobile_sam, Settings(side=256, recent=2, kept=1))
    whole = list(
        propagator.propagate(PropagationRequest(clip, prompts, direction=direction))
    )
    for cut in range(len(whole) + 1):
        run = propagator.propagate(
            PropagationRequest(clip, prompts, direction=direction)
        )
        for _ in itertools.islice(run, cut):
            pass
        state = {k: np.array(v) for k, v in run.checkpoint().items()}
        rest = propagator.propagate(
            PropagationRequest(clip, prompts, direction=direction, checkpoint=state)
        )
        for a, b in zip(whole[cut:], rest, strict=True):
            same(a, b)


def test_a_lost_object_has_no_mask_and_comes_back(mobile_sam, clip_of):
    clip = clip_of("soccerball", 3)
    ground = clip.frames[0].copy()
    ground[:] = ground.mean(axis=(0, 1)).astype(np.uint8)

    class Hidden:
        height, width = clip.height, clip.width

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return ground if 2 <= index < 7 else clip[min(index, 1)]

    prompts = [Prompt(1, 0, mask=clip.masks[0] == 1)]
    propagator = MobileSamPropagator(mobile_sam, SMALL)
    results = list(propagator.propagate(PropagationRequest(Hidden(), prompts)))
    found = [r.objects[1] for r in results]
    assert all(o.mask is None for o in found[3:7])
    assert found[7].mask is not None
    assert region_similarity(found[7].mask, clip.masks[1] == 1) > 0.6
    assert max(o.score for o in found[3:7]) < 0.5 * found[7].score


class Then:
    """A clip's frames, then others."""

    def __init__(self, clip, others):
        self.frames = [*clip.frames, *others]
        self.height, self.width = clip.height, clip.width

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index]


@pytest.mark.parametrize("what", ["black", "gray", "a cut"])
def test_what_is_gone_is_never_a_large_sure_mask(mobile_sam, clip_of, what):
    clip = clip_of("car-shadow", 2)
    truth = clip.masks[0] == 1
    empty = np.zeros_like(clip.frames[0])
    after = {
        "black": [empty] * 3,
        "gray": [empty + 128] * 3,
        "a cut": clip_of("rollerblade", 3).frames,
    }[what]
    run = MobileSamPropagator(mobile_sam, SMALL).propagate(
        PropagationRequest(Then(clip, after), [Prompt(1, 0, mask=truth)])
    )
    for result in list(run)[2:]:
        found = result.objects[1]
        assert found.score < 0.5
        assert found.mask is None or found.mask.sum() < 3 * truth.sum()


@pytest.mark.parametrize(
    ("size", "still"),
    [((2, 60), True), ((60, 2), True), ((6, 6), True), ((1, 1), True), ((4, 4), False)],
    ids=["flat", "narrow", "small", "a pixel", "on a frame without texture"],
)
def test_thin_and_small_prompts_are_kept_or_lost(mobile_sam, clip_of, size, still):
    clip = clip_of("car-shadow", 1)
    mask = np.zeros((clip.height, clip.width), dtype=bool)
    mask[200 : 200 + size[0], 400 : 400 + size[1]] = True
    frame = clip.frames[0] if still else np.full_like(clip.frames[0], 90)
    frames = Then(clip, [frame] * 3)
    frames.frames[0] = frame
    prompts = [Prompt(1, 0, mask=mask)]
    run = MobileSamPropagator(mobile_sam, SMALL).propagate(
        PropagationRequest(frames, prompts)
    )
    first, *others = [result.objects[1] for result in run]
    assert np.array_equal(first.mask, mask)
    for found in others:
        small = found.mask is None or found.mask.sum() < 30 * max(mask.sum(), 36)
        assert small or found.score < 0.5


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_correction_is_as_good_as_a_right_prompt(mobile_sam, clip_of, direction):
    clip = clip_of("soccerball", 10)
    wrong = np.zeros((clip.height, clip.width), dtype=bool)
    wrong[20:120, 100:250] = True
    start, corrected = (0, 4) if direction == "forward" else (9, 5)
    right = Prompt(1, corrected, mask=clip.masks[corrected] == 1)

    def mean_j(prompts):
        run = MobileSamPropagator(mobile_sam, SMALL).propagate(
            PropagationRequest(clip, prompts, direction=direction)
        )
        found = {r.frame: r.objects[1].mask for r in run}
        frames = range(5, 10) if direction == "forward" else range(5)
        return np.mean(
            [
                region_similarity(found[k], clip.masks[k] == 1)
                if found[k] is not None
                else 0.0
                for k in frames
            ]
        )

    alone = mean_j([right])
    assert alone > 0.6
    assert mean_j([Prompt(1, start, mask=wrong), right]) >= alone - 0.02


def test_memory_does_not_grow_with_the_video(mobile_sam, squares):
    class Long:
        height, width = squares.height, squares.width

        def __len__(self):
            return 60

        def __getitem__(self, index):
            return squares[index % 2]

    # A prompt on every fifth frame: even those are not all remembered.
    prompts = [
        Prompt(1, frame, mask=squares.masks[frame % 2] == 1)
        for frame in range(0, 60, 5)
    ]
    run = MobileSamPropagator(mobile_sam, Settings(side=128)).propagate(
        PropagationRequest(Long(), prompts)
    )
    sizes = [sum(a.nbytes for a in run.checkpoint().values()) for _ in run]
    assert max(sizes[30:]) == max(sizes[:30])


def test_bad_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        MobileSam.from_pretrained(tmp_path / "mobile_sam.pt")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        MobileSam.from_pretrained(tmp_path / "torn.pt")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="not MobileSAM's weights"):
        MobileSam.from_pretrained(tmp_path / "other.pt")
