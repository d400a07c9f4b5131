from __future__ import annotations

import gc
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from fiftyone_regioncap.core.errors import BackendError, VideoError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.model import TrackerModel
from fiftyone_regioncap.propagation.sam2.propagator import Sam2Propagator


def box(object_id: int, frame: int = 0) -> Prompt:
    left = 10.0 + 9 * (object_id % 8)
    return Prompt(object_id, frame, box=(left, 10, left + 50, 60))


def mask(object_id: int, frame: int = 0) -> Prompt:
    pixels = np.zeros((90, 140), dtype=bool)
    pixels[20 + object_id : 55, 30:85] = True
    return Prompt(object_id, frame, mask=pixels)


@pytest.fixture(scope="module")
def propagator(make_model):
    return Sam2Propagator(make_model(), device="cpu")


def same(one, other) -> bool:
    if (one.frame, one.prompted) != (other.frame, other.prompted):
        return False
    if one.objects.keys() != other.objects.keys():
        return False
    for key, left in one.objects.items():
        right = other.objects[key]
        if left.score != right.score or (left.mask is None) != (right.mask is None):
            return False
        if left.mask is not None and not np.array_equal(left.mask, right.mask):
            return False
    return True


def test_masks_ids_scores(propagator, make_clip):
    clip = make_clip(6)
    prompts = [box(7), mask(3), box(40, 2)]
    found = list(propagator.propagate(PropagationRequest(clip, prompts, overlap=True)))
    assert [one.frame for one in found] == list(range(6))
    assert [set(one.objects) for one in found] == [{7, 3}] * 2 + [{7, 3, 40}] * 4
    assert [set(one.prompted) for one in found] == [{7, 3}, set(), {40}] + [set()] * 3
    for one in found:
        for item in one.objects.values():
            assert 0 <= item.score <= 1
            assert item.mask is None or (
                item.mask.dtype == bool and item.mask.shape == (90, 140)
            )
    given = found[0].objects[3].mask
    overlap = (given & prompts[1].mask).sum() / (given | prompts[1].mask).sum()
    assert overlap > 0.9


def test_objects_share_no_pixel_unless_allowed(propagator, make_clip):
    clip = make_clip(4)
    prompts = [box(1), mask(2), mask(3)]
    shared = False
    for apart, together in zip(
        propagator.propagate(PropagationRequest(clip, prompts)),
        propagator.propagate(PropagationRequest(clip, prompts, overlap=True)),
        strict=True,
    ):
        for kind, found in (("apart", apart), ("together", together)):
            masks = [o.mask for o in found.objects.values() if o.mask is not None]
            most = np.sum(masks, axis=0).max() if masks else 0
            assert kind == "together" or most <= 1
            shared = shared or most > 1
    assert shared


@pytest.mark.parametrize(
    ("prompts", "range_", "direction", "frames"),
    [
        ([box(1, 3)], (0, None), "forward", [3, 4, 5, 6, 7]),
        ([box(1, 3)], (2, 6), "forward", [3, 4, 5]),
        ([box(1, 3)], (2, 6), "backward", [3, 2]),
        ([box(1, 3)], (2, 6), "both", [3, 4, 5, 2]),
        ([box(1, 3), box(2, 5)], (2, 7), "both", [3, 4, 5, 6, 4, 3, 2]),
    ],
)
def test_range_and_direction(propagator, make_clip, prompts, range_, direction, frames):
    start, stop = range_
    found = propagator.propagate(
        PropagationRequest(
            make_clip(8), prompts, direction=direction, start=start, stop=stop
        )
    )
    pairs = [(one.frame, key) for one in found for key in one.objects]
    assert list(dict.fromkeys(pairs)) == pairs  # no (frame, object) twice
    again = propagator.propagate(
        PropagationRequest(
            make_clip(8), prompts, direction=direction, start=start, stop=stop
        )
    )
    assert [one.frame for one in again] == frames


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("cut", [0, 1, 4, 9, 14, 21])
def test_going_on_from_a_checkpoint_changes_nothing(
    propagator, make_clip, direction, cut
):
    clip = make_clip(16)
    prompts = [box(1, 6), mask(2, 7), box(1, 9), box(3, 12), off(1, 8), off(2, 5)]
    if direction == "forward":
        prompts.pop()  # that object is not carried there
    arguments = {"direction": direction, "overlap": True}
    whole = list(propagator.propagate(PropagationRequest(clip, prompts, **arguments)))
    first = propagator.propagate(PropagationRequest(clip, prompts, **arguments))
    start = [next(first) for _ in range(min(cut, len(whole)))]
    # Through a file, as jobs keep it.
    arrays = {k: np.ascontiguousarray(v) for k, v in first.checkpoint().items()}
    kept = load(save(arrays))
    rest = list(
        propagator.propagate(
            PropagationRequest(clip, prompts, **arguments, checkpoint=kept)
        )
    )
    assert len(start) + len(rest) == len(whole)
    assert all(same(a, b) for a, b in zip(start + rest, whole, strict=True))


def test_a_checkpoint_does_not_grow_with_the_video(propagator, make_clip):
    clip = make_clip(60)
    run = propagator.propagate(PropagationRequest(clip, [box(1), mask(2)]))
    sizes = []
    for found in run:
        if found.frame in (20, 58):
            sizes.append(sum(array.nbytes for array in run.checkpoint().values()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": [box(1), box(2)]},
        {"direction": "both"},
        {"stop": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_run_is_refused(propagator, make_clip, change):
    clip = make_clip(6)
    run = propagator.propagate(PropagationRequest(clip, [box(1)]))
    next(run)
    arguments = {"prompts": [box(1)], "checkpoint": run.checkpoint()} | change
    with pytest.raises(BackendError, match="another model, video or prompts"):
        propagator.propagate(PropagationRequest(clip, **arguments))


def test_prompts_on_one_frame_add_up(propagator, make_clip):
    clip = make_clip(3)
    points = np.array([[40.0, 30.0], [20.0, 20.0]])
    signs = np.array([True, False])
    apart = [
        Prompt(1, 0, box=(10, 10, 40, 60)),
        Prompt(1, 0, box=(30, 12, 60, 50)),
        Prompt(1, 0, points=points, point_signs=signs),
    ]
    joint = [Prompt(1, 0, box=(10, 10, 60, 60), points=points, point_signs=signs)]
    for one, other in zip(
        propagator.propagate(PropagationRequest(clip, apart)),
        propagator.propagate(PropagationRequest(clip, joint)),
        strict=True,
    ):
        assert same(one, other)


def off(object_id: int, frame: int) -> Prompt:
    points = np.array([[40.0, 40.0], [60.0, 30.0]])
    return Prompt(object_id, frame, points=points, point_signs=np.zeros(2, bool))


@pytest.mark.parametrize(
    ("direction", "first", "click", "changed"),
    [
        ("forward", 0, 3, {3, 4, 5}),
        ("backward", 5, 3, {3, 2, 1, 0}),
        ("both", 2, 4, {4, 5, 1, 0}),  # the way back looks at frames after the first
        ("both", 4, 2, {2, 1, 0}),
    ],
)
def test_clicks_off_the_object_correct_the_carried_mask(
    make_model, make_clip, direction, first, click, changed
):
    model = make_model()
    # Absent objects have the same logits, corrected or not.
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 99)
    propagator = Sam2Propagator(model, device="cpu")
    clip, prompts = make_clip(6), [box(1, first), mask(2, first)]
    plain, corrected = (
        {
            (found.frame, key): (found.logits[n], key in found.prompted)
            for found in propagator.logits(PropagationRequest(clip, given, direction))
            for n, key in enumerate(found.object_ids)
        }
        for given in (prompts, [*prompts, off(1, click)])
    )
    assert plain.keys() == corrected.keys()
    for key, (logits, prompted) in corrected.items():
        frame, object_id = key
        difference = float((logits - plain[key][0]).abs().max())
        if object_id == 1 and frame in changed:
            assert difference > (0.1 if frame == click else 1e-3), key
        else:
            assert difference < 1e-4, key  # batches of other sizes round otherwise
        assert prompted == (frame == first or key == (click, 1))


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("later", ["another", "the same"])
def test_what_a_later_prompt_contradicts_is_forgotten(
    make_model, make_clip, direction, later
):
    model, clip = make_model(), make_clip(8)
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 99)
    keeping, forgetting = (
        Sam2Propagator(
            model, device="cpu", options=Sam2Options(forget_contradicted=forgets)
        )
        for forgets in (False, True)
    )

    def logits(propagator, prompts, checkpoint=None):
        request = PropagationRequest(clip, prompts, direction, checkpoint=checkpoint)
        return {found.frame: found.logits[0] for found in propagator.logits(request)}

    first, then = (6, 3) if direction == "backward" else (1, 4)
    old = mask(1, first)
    (carried,) = (
        found.objects[1].mask
        for found in keeping.propagate(
            PropagationRequest(clip, [old], direction, overlap=True)
        )
        if found.frame == then
    )
    marked = ~carried if later == "another" else carried
    new = Prompt(1, then, mask=marked)
    both, fresh = logits(keeping, [old, new]), logits(keeping, [new])
    found = logits(forgetting, [old, new])
    assert found.keys() == both.keys()
    after = range(then - 1, -1, -1) if direction == "backward" else range(then + 1, 8)
    for frame in found:
        expected = fresh if later == "another" and frame in after else both
        assert (found[frame] - expected[frame]).abs().max() < 1e-4, frame
    if later == "another":
        assert max((both[t] - fresh[t]).abs().max() for t in after) > 1e-2
    # A run that goes on from a checkpoint forgets the same.
    run = forgetting.logits(PropagationRequest(clip, [old, new], direction))
    while next(run).frame != after[0]:
        pass
    kept = load(save({k: np.ascontiguousarray(v) for k, v in run.checkpoint().items()}))
    rest = logits(forgetting, [old, new], kept)
    assert rest
    assert all(torch.equal(rest[frame], found[frame]) for frame in rest)


def test_points_refine_a_mask(propagator, make_clip):
    clip = make_clip(1)
    point = Prompt(1, 0, points=np.array([[110.0, 80.0]]))
    logits = {
        name: next(propagator.logits(PropagationRequest(clip, prompts))).logits
        for name, prompts in {
            "mask": [mask(1)],
            "points": [point],
            "both": [mask(1), point],
        }.items()
    }
    assert not torch.equal(logits["both"], logits["mask"])
    assert not torch.equal(logits["both"], logits["points"])


def test_a_mask_thinner_than_a_model_pixel_is_not_lost(propagator, make_clip):
    clip = make_clip(2, height=900, width=1400)
    thin = np.zeros((900, 1400), dtype=bool)
    thin[300:302, 700:703] = True
    found = next(propagator.logits(PropagationRequest(clip, [Prompt(1, 0, mask=thin)])))
    assert found.presence[0] > 0


class SmallMemory(TrackerModel):
    """Runs out of memory with more objects at once than fit."""

    fits = 2

    def attend(self, features, memory, positions, **arguments):
        if len(memory) > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().attend(features, memory, positions, **arguments)


class TinyMemory(SmallMemory):
    fits = 0


def test_a_full_gpu_makes_the_chunks_smaller(propagator, make_model, make_clip):
    class Propagator(Sam2Propagator):
        tracker = SmallMemory

    clip, prompts = make_clip(5), [box(i) for i in range(7)]
    small = Propagator(make_model(), device="cpu")
    for one, other in zip(
        small.logits(PropagationRequest(clip, prompts)),
        propagator.logits(PropagationRequest(clip, prompts)),
        strict=True,
    ):
        assert one.object_ids == other.object_ids
        assert (one.logits - other.logits).abs().max() < 1e-4


def test_one_object_too_many_is_an_error_and_keeps_the_checkpoint(
    propagator, make_model, make_clip
):
    class Propagator(Sam2Propagator):
        tracker = TinyMemory

    clip, prompts = make_clip(5), [box(1), box(2)]
    run = Propagator(make_model(), device="cpu").propagate(
        PropagationRequest(clip, prompts)
    )
    first = next(run)
    with pytest.raises(BackendError, match="smaller image_size"):
        next(run)
    kept = run.checkpoint()
    rest = list(
        propagator.propagate(PropagationRequest(clip, prompts, checkpoint=kept))
    )
    whole = list(propagator.propagate(PropagationRequest(clip, prompts)))
    assert all(same(a, b) for a, b in zip([first, *rest], whole, strict=True))


def test_a_broken_frame_is_reported_and_its_thread_ends(propagator, make_clip):
    clip = make_clip(6)

    class Broken:
        height, width = clip.height, clip.width

        def __len__(self) -> int:
            return len(clip)

        def __getitem__(self, index: int) -> np.ndarray:
            if index == 3:
                raise VideoError("clip.mp4", "corrupt", 2)
            return clip[index]

    before = set(threading.enumerate())
    run = propagator.propagate(PropagationRequest(Broken(), [box(1)]))
    with pytest.raises(VideoError, match="last good frame is 3"):
        list(run)
    assert run.checkpoint()["position"].tolist() == [0, 3]
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_frames_are_read_once_and_not_kept(propagator, make_clip):
    clip = make_clip(30)
    read: list[int] = []

    class Counting:
        height, width = clip.height, clip.width

        def __len__(self) -> int:
            return len(clip)

        def __getitem__(self, index: int) -> np.ndarray:
            read.append(index)
            return clip[index]

    for found in propagator.propagate(
        PropagationRequest(Counting(), [box(1, 2), box(2, 2)])
    ):
        assert len(read) <= found.frame - 2 + 1 + 3
    assert sorted(read) == list(range(2, 30))


def test_the_model_is_left_as_it_was(make_model, make_clip, reference):
    model, clip = make_model(), make_clip(3)
    before = reference(model, clip, [box(1)], "forward")
    names = [name for name, _ in model.named_modules()]
    list(
        Sam2Propagator(model, device="cpu").propagate(
            PropagationRequest(clip, [box(1)])
        )
    )
    assert [name for name, _ in model.named_modules()] == names
    after = reference(model, clip, [box(1)], "forward")
    assert all(torch.equal(before[key][0], after[key][0]) for key in before)


def test_tensors_in_memory_do_not_grow_with_the_video(propagator, make_clip):
    clip = make_clip(70)
    counts = {}
    for found in propagator.propagate(
        PropagationRequest(clip, [box(1), mask(2)], direction="both")
    ):
        if found.frame in (30, 60):
            gc.collect()
            counts[found.frame] = Counter(
                (tuple(thing.shape), thing.dtype)
                for thing in gc.get_objects()
                if type(thing) is torch.Tensor
                and thing.shape[-2:] != (90, 140)  # masks given out, or none
            )
    assert counts[60] == counts[30]
