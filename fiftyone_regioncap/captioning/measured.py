"""A captioner without a neural network: it states measurements and nothing else.

Its sentences name the colors, the size and place in the frame, the object's own
motion, how it comes into the frame and goes out of it, and when it is hidden. What the
object *is* comes from the clip's label alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.checking import clip_problem
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.types import Caption, RegionClip
from fiftyone_regioncap.measuring.regions import Measurements, measure

_CAMERA_MOVES = 0.1  # frame widths of view shift from which the camera is mentioned

# A color before these would be read as a statement about the person.
_PERSON = re.compile(
    r".*(man|men|boy|girl)s?|adults?|athletes?|bab(y|ies)|bicyclists?|bikers?|child|"
    r"children|climbers?|cyclists?|dancers?|drivers?|females?|goalkeepers?|guys?|"
    r"infants?|joggers?|kids?|lad(y|ies)|males?|motorcyclists?|passengers?|"
    r"pedestrians?|people|persons?|players?|referees?|riders?|rollerbladers?|"
    r"runners?|skateboarders?|skaters?|skiers?|snowboarders?|soldiers?|students?|"
    r"surfers?|swimmers?|teenagers?|toddlers?|workers?"
)

_SINGULAR_S = frozenset({"canvas", "gas", "lens", "series", "species"})
_PLURAL_WITHOUT_S = frozenset({"mice", "people", "sheep"})
_PLURAL_ENDINGS = ("men", "children")

_DETERMINER = re.compile(r"(an?|the|this|that|my|his|her|its|their|our|\d+)\s", re.I)
_AFTER_HEAD = re.compile(
    r"\s(?:at|by|from|holding|in|of|on|riding|that|wearing|which|who|with)\s"
)
_VOWEL_SOUND = re.compile(r"hour|honest|honou?r|heir|[aeiou]", re.I)
_CONSONANT_SOUND = re.compile(r"eu|one\b|uni(?!d|m|n)|us[aeu]|ut[eo]|u\b", re.I)
_SPELLED_VOWEL = re.compile(r"[AEFHILMNORSX][A-Z0-9]")
_SPELLED = re.compile(r"[A-Z][A-Z0-9]")

_PREPOSITIONS = {"left": "on", "right": "on", "top": "at", "bottom": "at"}
_OPPOSITES = ({"left", "right"}, {"top", "bottom"})


class MeasuredCaptioner:
    """Describes regions by their measurements."""

    @classmethod
    def from_pretrained(
        cls,
        weights: None = None,
        *,
        device: str | None = None,
        options: Options | None = None,
    ) -> MeasuredCaptioner:
        """Makes a captioner, which needs neither weights nor a device."""
        return cls()

    @property
    def info(self) -> CaptionerInfo:
        """Returns information without weights or prompts; attributes are colors."""
        return CaptionerInfo(
            name="measured",
            model="measured",
            revision=__version__,
            license="Apache-2.0",
            frames=16,
            batch_size=16,
            takes_prompt=False,
            tasks=frozenset({"caption", "attributes"}),
        )

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order.

        Args:
            clips: Clips of any objects, videos, sizes and lengths.
            prompt: Must be None; the captioner takes no prompt.

        Raises:
            BackendError: When a prompt is given.
        """
        self.info.check_prompt(prompt)
        return [_caption(clip) for clip in clips]


def _caption(clip: RegionClip) -> Caption:
    problem = clip_problem(clip)
    if problem is not None:
        return Caption(error=problem)
    measured = clip.measurements or measure(clip)
    return Caption(
        text=describe(measured, clip.label, moving=clip.fps is not None),
        label=_clean(clip.label) or f"{measured.dominant_color} object",
        attributes=tuple((f"color:{name}", x) for name, x in measured.main_colors),
    )


def describe(measured: Measurements, label: str | None, *, moving: bool) -> str:
    """Returns measurements as one or two sentences.

    Args:
        measured: Measurements of an object that is visible on at least one frame.
        label: Name of the object; None if unknown.
        moving: Whether the measurements are of a video.
    """
    name = _clean(label)
    noun = name or "object"
    plural = _is_plural(noun)
    main = measured.main_colors
    colors = " and ".join(color for color, _ in main)
    fitting = not _DETERMINER.match(noun) and not _PERSON.fullmatch(_head(noun))
    sayable = fitting and sum(share for _, share in main) >= 0.5
    subject = _with_article(f"{colors} {noun}" if sayable else noun, plural)
    verbs = list(_verbs(measured)) if moving else [f"is {_in(measured.first_place)}"]
    if plural:
        verbs = [_PLURAL_VERB.sub(_plural_verb, verb) for verb in verbs]
    whole = "frame" if moving else "image"
    area = f"{_percent(measured.mean_area or 0)} of the {whole}"
    text = f"{subject}, {area}, {_listed(verbs)}."
    if colors and not sayable:
        one = len(main) == 1
        text += f" The main color{'' if one else 's'} of the region "
        text += f"{'is' if one else 'are'} {colors}."
    return text[0].upper() + text[1:]


# What the object does.


def _verbs(measured: Measurements) -> Iterator[str]:
    """Yields clauses without a subject, in the order of what happens."""
    if measured.enters:
        yield f"comes in from the {measured.enters}"
    yield _motion(measured)
    if measured.leaves:
        yield f"goes out {_PREPOSITIONS[measured.leaves]} the {measured.leaves}"
    absences = len(measured.visible_spans) - 1
    if absences > 0:
        times = {1: "once", 2: "twice"}.get(absences, f"{absences} times")
        (first, _), (_, last) = measured.visible_spans[0], measured.visible_spans[-1]
        seen = sum(end - start + 1 for start, end in measured.visible_spans)
        share = _percent(1 - seen / (last - first + 1))
        # Whether it was hidden or only lost by the tracker, the masks do not tell.
        yield f"is not found {times} in between, {share} of the time"


def _motion(measured: Measurements) -> str:
    first, last = measured.first_place, measured.last_place
    camera_moves = (measured.camera_shift or 0) >= _CAMERA_MOVES
    if measured.direction is None:
        return _where(first, last)
    if measured.direction == "still":
        while_moving = " while the camera moves" if camera_moves else ""
        if first == last or not camera_moves:
            return f"stays nearly still {_in(first)} of the frame{while_moving}"
        return f"stays nearly still{while_moving}, shifting {_route(first, last)}"
    if measured.direction in ("towards", "away"):
        return f"{_depth(measured.direction, 'gets')}, {_route(first, last)}"
    speed = _speed(measured.speed or 0)
    depth = f", {_depth(measured.depth, 'getting')}" if measured.depth else ""
    turns = {0: "", 1: ", turning sharply once", 2: ", turning sharply twice"}.get(
        measured.turns or 0, f", turning sharply {measured.turns} times"
    )
    if camera_moves:
        follows = "followed by the camera, " if first == last else ""
        way = f"{measured.direction} across the scene {speed}, {follows}"
        way += _route(first, last)
    elif {first, last} in _OPPOSITES and measured.direction == last:
        way = f"{_route(first, last)} {speed}"
    elif first == last:
        way = f"{measured.direction} {_route(first, last)} {speed}"
    else:
        way = f"{measured.direction}, {_route(first, last)}, {speed}"
    return f"moves {way}{depth}{turns}"


def _depth(depth: str, verb: str) -> str:
    towards = depth == "towards"
    return f"{verb} {'closer to' if towards else 'farther from'} the camera"


def _where(first: str | None, last: str | None) -> str:
    if first == last:
        return f"is {_in(first)} of the frame"
    return f"is seen first {_in(first)} and last {_in(last)} of the frame"


def _route(first: str | None, last: str | None) -> str:
    if first == last:
        return f"{_in(first)} of the frame"
    return f"from the {first} to the {last} of the frame"


def _in(place: str | None) -> str:
    return f"{_PREPOSITIONS.get(place or '', 'in')} the {place}"


def _speed(speed: float) -> str:
    if speed < 0.05:
        return "at less than 0.1 frame widths per second"
    return f"at about {speed:.1f} frame widths per second"


def _percent(share: float) -> str:
    return "less than 1%" if share < 0.005 else f"about {max(share, 0.01):.0%}"


# English.

_PLURAL_VERB = re.compile(r"^(is|comes|goes|gets|moves|stays)\b")


def _plural_verb(match: re.Match[str]) -> str:
    verb = match.group()
    return {"is": "are", "goes": "go"}.get(verb, verb[:-1])


def _listed(clauses: Sequence[str]) -> str:
    if len(clauses) < 3:
        return " and ".join(clauses)
    return f"{', '.join(clauses[:-1])}, and {clauses[-1]}"


def _clean(label: str | None) -> str:
    return " ".join((label or "").replace("_", " ").split())


def _head(noun: str) -> str:
    """Returns the head noun of a phrase: "man" of "old man with a hat"."""
    return _AFTER_HEAD.split(noun)[0].split()[-1].lower()


def _is_plural(noun: str) -> bool:
    head = _head(noun)
    if head in _PLURAL_WITHOUT_S or head.endswith(_PLURAL_ENDINGS):
        return True
    ends = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    return ends and head not in _SINGULAR_S


def _with_article(noun: str, plural: bool) -> str:
    if plural or _DETERMINER.match(noun):
        return noun
    if _SPELLED.match(noun):
        return f"an {noun}" if _SPELLED_VOWEL.match(noun) else f"a {noun}"
    vowel = _VOWEL_SOUND.match(noun) and not _CONSONANT_SOUND.match(noun)
    return f"an {noun}" if vowel else f"a {noun}"
