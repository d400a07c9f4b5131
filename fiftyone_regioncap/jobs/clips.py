"""The loop of stages that give clips of many samples to a model as one stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.core.errors import Canceled, FatalError
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.jobs.base import DATABASE_GONE, BaseStage, Item, RunContext
from fiftyone_regioncap.video.prefetch import QueueGauge, prefetch

K = TypeVar("K")
R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)
OptionsT = TypeVar("OptionsT", bound=Options)

RESULTS_PER_WRITE = 64
"""Results are written to the database in chunks of this size, per sample."""

WAITING_BYTES = 512 << 20
"""Size of the clips that wait for a model at most; frames of 1080p take 8 MB each."""

OnText: TypeAlias = Callable[[str], None]


class ClipWork(Protocol[K, R_contra]):
    """The clips of one sample, and what becomes of the model's results."""

    @property
    def total(self) -> int:
        """Number of clips."""

    def clips(self) -> Iterator[tuple[K, RegionClip]]:
        """Makes the clips, each with a key; runs in the decoding thread.

        They are the same in the same order at each call, whatever was written.
        """

    def write(self, results: Sequence[tuple[K, R_contra]]) -> None:
        """Writes some results."""

    def finish(self) -> None:
        """Completes the sample, once all results are written."""


class ClipStage(BaseStage[OptionsT]):
    """A stage whose model describes clips; by default a captioner."""

    _captioner: Any

    def prepare(
        self, target: Target, sample: Sample, context: RunContext
    ) -> ClipWork[Any, Any] | None:
        """Returns the work of a sample; None when it is complete."""
        raise NotImplementedError

    def infer(
        self, clips: Iterator[RegionClip], on_text: OnText
    ) -> Generator[Any, None, None]:
        """Yields one result a clip, in order; batches may reach across samples.

        Args:
            clips: The clips.
            on_text: Takes the text so far of the next result.
        """
        prompt = getattr(self._options, "prompt", None)
        return caption_stream(self._captioner, clips, prompt=prompt, on_token=on_text)

    def count(self, result: Any, context: RunContext) -> None:
        """Counts a result."""
        context.captioned(result)

    def run(self, items: Iterator[Item], context: RunContext) -> Iterator[Item]:
        """Works on sample after sample; see :meth:`Stage.run`."""
        return each_clip(
            self.name,
            self.output,
            lambda target, sample: self.prepare(target, sample, context),
            self.infer,
            lambda result: self.count(result, context),
            items,
            context,
            depth=self._captioner.info.batch_size,
        )


@dataclass(frozen=True)
class _Pending(Generic[K, R]):
    """A clip whose result is awaited, or without a key the end of a sample."""

    item: Item
    work: ClipWork[K, R] | None
    key: K | None = None
    number: int = 0
    error: Exception | None = None


def each_clip(
    stage: StageName,
    output: str | None,
    prepare: Callable[[Target, Sample], ClipWork[K, R] | None],
    infer: Callable[[Iterator[RegionClip], OnText], Generator[R, None, None]],
    count: Callable[[R], None],
    items: Iterable[Item],
    context: RunContext,
    *,
    depth: int,
) -> Iterator[Item]:
    """Makes clips ahead in a thread, and writes a model's results as they come.

    Args:
        stage: Name of the stage.
        output: Field whose status says when a sample failed; None for none.
        prepare: Gives the work of a sample; None when it is complete.
        infer: Gives one result a clip, in order; batches may reach across samples. Its
            second argument takes the text so far of the next result.
        count: Counts a result.
        items: The samples.
        context: Context of the job.
        depth: Number of clips that are made ahead.

    Yields:
        Samples that did not fail.

    Raises:
        FatalError: When every further clip would fail too.
    """
    pending: deque[_Pending[K, R]] = deque()
    made: list[tuple[K, R]] = []
    broken: list[Exception] = []  # of the sample whose results come now

    def clips() -> Iterator[RegionClip]:
        for item in items:
            work = None
            try:
                work = context.patiently(partial(prepare, *item))
                if work is not None:
                    for number, (key, clip) in enumerate(_clips(work, context), 1):
                        pending.append(_Pending(item, work, key, number))
                        yield clip
            except (Canceled, FatalError):
                raise
            except Exception as error:
                pending.append(_Pending(item, work, error=error))
            else:
                pending.append(_Pending(item, work))

    def write(work: ClipWork[K, R] | None, last: bool = False) -> None:
        """Writes what was made; a failure is that of this sample alone."""
        try:
            if work is not None and made and not broken:
                context.patiently(partial(work.write, list(made)))
            if work is not None and last and not broken:
                context.patiently(work.finish)
        except (Canceled, FatalError):
            raise
        except Exception as error:
            broken.append(error)
        made.clear()

    def end(entry: _Pending[K, R]) -> Iterator[Item]:
        write(entry.work, last=entry.error is None)
        error = entry.error or (broken[0] if broken else None)
        broken.clear()
        _, sample = entry.item
        if error is not None:
            context.failed(stage, entry.item, output, error)
            return
        if entry.work is None:
            context.passed_over(stage)
        context.finished(stage, sample)
        yield entry.item

    def on_text(text: str) -> None:
        entry = pending[0]
        if entry.work and entry.work.total == 1 and context.summary.samples == 1:
            context.reporter.update_text(stage, name_of(entry.item[1]), text)

    ahead = prefetch(
        clips(),
        depth,
        size=_bytes_of,
        max_bytes=WAITING_BYTES,
        gauge=context.queues.setdefault(stage, QueueGauge()),
    )
    results = infer(ahead, on_text)
    # The results first: a model may be reading clips in a thread of its own.
    with closing(ahead), closing(results):
        for result in results:
            while pending[0].key is None:
                yield from end(pending.popleft())
            entry = pending.popleft()
            assert entry.work is not None and entry.key is not None
            made.append((entry.key, result))
            count(result)
            if len(made) >= RESULTS_PER_WRITE:
                write(entry.work)
            name = name_of(entry.item[1])
            context.reporter.update(stage, name, entry.number, entry.work.total)
    while pending:
        yield from end(pending.popleft())


def _bytes_of(clip: RegionClip) -> int:
    return sum(array.nbytes for array in (*clip.frames, *clip.masks))


def _clips(
    work: ClipWork[K, Any], context: RunContext
) -> Iterator[tuple[K, RegionClip]]:
    """Makes the clips of a sample; those left, when the database was away."""
    made = 0

    def following() -> Iterator[tuple[K, RegionClip]]:
        return islice(work.clips(), made, None)

    clips = following()
    while True:
        try:
            found = next(clips, None)
        except DATABASE_GONE as error:
            context.wait_for_database(error)
            clips = following()
            continue
        if found is None:
            return
        made += 1
        yield found
