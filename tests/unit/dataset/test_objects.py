"""Objects get their numbers once, whatever is hidden, added or renamed later."""

from __future__ import annotations

from random import Random

import pytest
from bson import ObjectId
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.dataset.objects import Identity, ObjectNumbers

INSTANCES = {name: str(ObjectId()) for name in "ab"}


def own(
    name: str,
    index: int | None = None,
    instance: str | None = None,
    label: str | None = None,
) -> Identity:
    """The identity of the label with a name."""
    return Identity(index, instance and INSTANCES[instance], label, f"id of {name}")


CAR, DOG = own("car", label="car"), own("dog", label="dog")
NEW = own("new", label="cat")


def numbered(*labels: tuple[int, Identity], known: dict[str, int] | None = None):
    found = ObjectNumbers.scan(labels, known)
    return found, [found.of(identity) for _, identity in labels]


@pytest.mark.parametrize(
    ("before", "after", "numbers"),
    [
        ([(3, CAR), (3, DOG)], [(1, NEW), (3, CAR), (3, DOG)], [3, 1, 2]),
        ([(3, CAR), (3, DOG)], [(3, DOG), (3, CAR)], [2, 1]),
        ([(3, CAR), (3, DOG)], [(3, DOG)], [2]),
        ([(3, CAR), (3, DOG)], [(3, DOG), (4, NEW)], [2, 3]),
        # the user says which object it is, afterwards
        ([(3, CAR), (3, DOG)], [(3, own("car", 5, label="car")), (3, DOG)], [5, 2]),
        ([(3, CAR), (5, DOG)], [(3, own("car", 1)), (5, own("dog", 1))], [1, 1]),
        (
            [(3, CAR), (5, DOG)],
            [(3, own("car", None, "a")), (5, own("dog", None, "a"))],
            [1, 1],
        ),
        ([(3, CAR), (3, DOG)], [(3, own("car", 2)), (3, own("dog", 1))], [2, 1]),
        # the number of the track, used as an index
        ([(3, CAR)], [(3, CAR), (6, own("more", 1, label="car"))], [1, 1]),
        ([(3, CAR)], [(3, CAR), (6, own("more", 1))], [1, 1]),
        ([(3, CAR)], [(3, CAR), (6, own("other", 1, label="dog"))], [1, 2]),
        # index_to_instance, also with clear_index
        (
            [(3, own("car", 5)), (3, own("dog", 6))],
            [(3, own("car", 5, "a")), (3, own("dog", 6, "b"))],
            [5, 6],
        ),
        (
            [(3, own("car", 5)), (3, own("dog", 6))],
            [(3, own("dog", None, "b")), (3, own("car", None, "a"))],
            [6, 5],
        ),
        (
            [(3, own("car", 1, None, "car")), (3, own("man", 1, None, "man"))],
            [(3, own("car", 1, "a", "car")), (3, own("man", 1, "b", "man"))],
            [1, 2],
        ),
        (
            [(3, own("car", 1, None, "car")), (3, own("man", 1, None, "man"))],
            [(3, own("man", None, "b", "man")), (3, own("car", None, "a", "car"))],
            [2, 1],
        ),
        # one of two of an index goes
        (
            [(3, own("car", 1, None, "car")), (3, own("man", 1, None, "man"))],
            [(3, own("man", 1, None, "man"))],
            [2],
        ),
        # the App links a label that was alone
        ([(3, CAR), (3, DOG)], [(3, DOG), (3, own("car", None, "a", "car"))], [2, 1]),
        # an index that was somebody's number in the meantime
        (
            [(3, own("car", 1, None, "car")), (3, own("man", 1, None, "man"))],
            [
                (3, own("car", 1, None, "car")),
                (3, own("man", 1, None, "man")),
                (4, own("bus", 2, None, "bus")),
            ],
            [1, 2, 3],
        ),
    ],
    ids=[
        "one on an earlier frame",
        "in another order",
        "one is gone",
        "no number is used again",
        "an index for one",
        "linked by index",
        "linked by instance",
        "indexes the other way round",
        "its number as an index",
        "its number as an index, unlabeled",
        "its number as the index of another",
        "index to instance",
        "index to instance, indexes cleared",
        "two of one index to instances",
        "two of one index to instances, indexes cleared",
        "one of two of an index is gone",
        "an instance for one",
        "a number as an index of another",
    ],
)
def test_objects_keep_their_numbers(before, after, numbers):
    first, _ = numbered(*before)
    again, found = numbered(*after, known=first.record)
    assert found == numbers
    assert numbered(*after, known=again.record)[1] == numbers


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ([(1, own("a", 1, None, "car")), (1, own("b", 1, None, "man"))], [1, 2]),
        ([(1, own("a", 1, None, "red")), (2, own("b", 1, None, "green"))], [1, 1]),
        ([(1, own("a", 1, None, "car")), (1, own("b", 1))], [1, 1]),
        ([(1, own("a", 1, "a", "car")), (1, own("b", 1, "a", "wheel"))], [1, 1]),
        ([(1, own("a", 1, "a", "car")), (1, own("b", 1, "b", "car"))], [1, 2]),
        ([(1, own("a", 1, "a")), (2, own("b", 1, "b"))], [1, 1]),
        (
            [
                (1, own("a", 1, None, "car")),
                (1, own("b", 1, None, "man")),
                (1, own("c", 2, None, "car")),
                (2, own("d", 1, None, "man")),
            ],
            [1, 3, 2, 3],
        ),
        ([(1, own("a")), (2, own("a"))], [1, 1]),
        ([(1, own("a", -1, None, "car")), (1, own("b", -1, None, "man"))], [-1, 1]),
    ],
    ids=[
        "two labels on a frame",
        "a label that changes",
        "no label",
        "two labels of an instance",
        "two instances on a frame",
        "an instance that changes",
        "beside another index",
        "the same label on two frames",
        "an index below zero",
    ],
)
def test_an_index_names_one_object_but_where_a_frame_has_it_twice(labels, numbers):
    assert numbered(*labels)[1] == numbers


NAMES = st.tuples(
    st.integers(1, 3),
    st.sampled_from([None, None, 1, 2]),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from([None, "car", "dog"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(NAMES, max_size=5), st.lists(NAMES, max_size=4), st.randoms())
@example(
    [(1, None, "b", "car"), (1, None, None, "dog")], [(1, 2, "b", None)], Random(0)
)
def test_what_is_alone_keeps_its_number(before, added, random):
    named = [
        (frame, own(str(number), *names))
        for number, (frame, *names) in enumerate(before + added)
    ]
    old = named[: len(before)]
    first, _ = numbered(*old)
    random.shuffle(named)
    again, _ = numbered(*named, known=first.record)
    assert None not in [again.of(identity) for _, identity in named]
    for _, identity in old:
        if not identity.linked:
            assert again.of(identity) == first.of(identity)
    # Once more, the same.
    once, _ = numbered(*named, known=again.record)
    assert [once.of(i) for _, i in named] == [again.of(i) for _, i in named]
