"""Errors of the package; each message says what is wrong and what to do."""

from __future__ import annotations


class RegionCapError(Exception):
    """Base of every error that this package raises on purpose."""


class VideoError(RegionCapError):
    """A video cannot be opened or decoded.

    Attributes:
        path: The file or folder.
        last_good_frame: 0-based index of the last frame that decoded; None if none
            did. The message counts frames from 1, as FiftyOne does.
    """

    def __init__(
        self, path: str, reason: str, last_good_frame: int | None = None
    ) -> None:
        self.path = path
        self.last_good_frame = last_good_frame
        where = (
            "no frame could be decoded"
            if last_good_frame is None
            else f"the last good frame is {last_good_frame + 1}"
        )
        super().__init__(f"{path}: {reason}; {where}")


class PromptError(RegionCapError, ValueError):
    """A prompt does not fit its frame: empty, outside, or of another size."""


class NothingMarked(RegionCapError):
    """A video has no prompt; the others go on, and this is no failure."""


class FieldError(RegionCapError, ValueError):
    """A label field is absent or of the wrong kind."""


class WeightsError(RegionCapError):
    """Weights are absent, corrupt, or of another architecture."""


class LicenseError(RegionCapError):
    """The license of some weights has not been accepted yet."""


class OptionError(RegionCapError, ValueError):
    """An option is unknown, missing, or has a value that it can't have."""


class BackendError(RegionCapError):
    """A propagator or captioner is unknown or cannot run on this machine."""


class FatalError(BackendError):
    """An error that every further call will meet too: a refused key, a wrong model.

    Work on many items stops at it after few tries.
    """


class DatabaseError(RegionCapError):
    """FiftyOne has no database and none can be started."""


class Fenced(RegionCapError):
    """Another process works on a sample by now; nothing was written."""


class Canceled(RegionCapError):
    """The user canceled the job; what was written stays."""
