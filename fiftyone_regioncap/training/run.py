"""Trains a captioner on the captions of a dataset."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import fiftyone.core.collections as foco
import fiftyone.core.media as fom

from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.captioning.trainable import Trainable
from fiftyone_regioncap.core.errors import (
    BackendError,
    FieldError,
    LicenseError,
    OptionError,
    RegionCapError,
)
from fiftyone_regioncap.core.markdown import code
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.dataset.runs import record_run, run_key
from fiftyone_regioncap.jobs.executors.on_ray import connected
from fiftyone_regioncap.models.registry import AUTO, ModelSpec
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.training.card import Provenance, write_card
from fiftyone_regioncap.training.data import Gathered, gather, split, text_of
from fiftyone_regioncap.training.examples import (
    ANEW,
    Example,
    Examples,
    read_examples,
    write_examples,
)
from fiftyone_regioncap.training.loop import (
    DONE,
    HELD_OUT,
    SETTINGS,
    TRAIN,
    Fit,
    Settings,
    fit,
    recipe_class,
    remove,
    require_packages,
)
from fiftyone_regioncap.training.options import MAY_DIFFER, TrainOptions

WEIGHTS = "weights"
"""Folder of the new weights in that of the training."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did.

    Attributes:
        model: The captioner's name.
        weights: Folder of the new weights.
        trained: Number of captions that were learned.
        held_out: Number of captions of the videos held out.
        videos: Number of videos or images learned from, and of those held out.
        fit: Steps, losses and evaluations.
        left_out: Number of captions that were not learned, by reason.
        failures: What could not be read.
        run: Key of the dataset's custom run; None without a dataset.
    """

    model: str
    weights: str
    trained: int
    held_out: int
    videos: tuple[int, int]
    fit: Fit
    left_out: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[str] = ()
    run: str | None = None

    @property
    def ok(self) -> bool:
        """Whether all captions that were wanted could be read."""
        return not self.failures

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Returns the loss of each step that was logged."""
        return [
            (int(entry["step"]), float(entry["loss"]))
            for entry in self.fit.history
            if "loss" in entry
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return {
            **{name: value for name, value in vars(self).items() if name != "fit"},
            "left_out": dict(self.left_out),
            "failures": list(self.failures),
            "videos": list(self.videos),
            "steps": self.fit.steps,
            "best_step": self.fit.best_step,
            "losses": self.losses,
            "evaluations": {str(k): dict(v) for k, v in self.fit.evaluations.items()},
        }

    def to_markdown(self) -> str:
        """Returns the summary for people."""
        losses = self.losses
        lines = [
            f"**{self.trained}** captions of {self.videos[0]} videos or images learned "
            f"in {self.fit.steps} steps; {self.held_out} of {self.videos[1]} held out"
        ]
        if losses:
            lines.append(f"loss {losses[0][1]:.4f} at first, {losses[-1][1]:.4f} now")
        for step, metrics in self.fit.evaluations.items():
            shown = ", ".join(
                f"{k} {v:.4f}" for k, v in metrics.items() if k != "epoch"
            )
            kept = " (kept)" if step == self.fit.best_step else ""
            lines.append(f"held out at step {step}{kept}: {shown}")
        if self.left_out:
            reasons = ", ".join(
                f"{n} {why}" for why, n in sorted(self.left_out.items())
            )
            lines.append(f"not learned: {reasons}")
        lines += [f"failed: {failure}" for failure in self.failures]
        lines.append(f"new weights of {self.model}: {code(self.weights)}")
        return "\n\n".join(lines) + "\n"


def train(
    samples: foco.SampleCollection,
    options: TrainOptions,
    *,
    model: ModelSpec | None,
    segmenter: Propagator | ModelSpec | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> TrainingSummary:
    """Trains a captioner on the captions of a dataset or a view.

    Killed and called again with the same arguments, it goes on after the last
    checkpoint and ends with the same weights.

    Args:
        samples: A dataset or a view.
        options: Which captions, how, and where to.
        model: The captioner and the weights to begin with.
        segmenter: What makes masks of the boxes and points of images, or its
            specification; None to take boxes as they are.
        listener: Called with each event of progress.
        cancel: Set it to stop after the step at hand, with a checkpoint.

    Raises:
        OptionError: When an option doesn't fit, or the folder holds another training.
        FieldError: When there are too few captions, or a field is of another kind.
        BackendError: When the captioner can't be trained, or memory runs out.
        LicenseError: When the license of the weights forbids to change them.
        Canceled: When ``cancel`` was set.
    """
    spec = checked_spec(model)
    dataset, frames = samples._root_dataset, recipe_class(spec.name).frames
    if dataset.media_type == fom.IMAGE and frames and segmenter is not None:
        segmenter = PROPAGATORS.obtain(segmenter, [])
    else:
        segmenter = None
    found = gather(samples, options.data, frames, segmenter)
    summary, provenance = train_on(
        found, spec, options, dataset.name, listener=listener, cancel=cancel
    )
    record_run(
        dataset,
        str(summary.run),
        {"options": options.to_mapping(), "provenance": provenance.to_dict()},
        {"summary": summary.to_dict()},
    )
    return summary


def train_on(
    found: Gathered,
    spec: ModelSpec,
    options: TrainOptions,
    dataset: str | None = None,
    *,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> tuple[TrainingSummary, Provenance]:
    """Trains a captioner on examples; see :func:`train`.

    Args:
        found: The examples.
        spec: The captioner and the weights to begin with.
        options: How, and where to.
        dataset: Name of their dataset, for the model card.
        listener: Called with each event of progress.
        cancel: Set it to stop after the step at hand, with a checkpoint.
    """
    consent = consented(spec)
    settings = settings_of(spec, options)
    settings.recipe_options()
    if options.loop.metrics and not recipe_class(spec.name).frames:
        raise OptionError(
            f"{spec.name} learns from captions alone, without regions to write some "
            "for; leave metrics out, and compare captions afterwards"
        )
    folder = Path(options.out).expanduser()
    require_enough(found, options)
    learned, held_out = split(found, options.data.held_out, options.data.seed)
    settings = replace(settings, captions=digest(learned, held_out))
    goes_on = begin(folder, settings, options)
    recipe = settings.load()
    if not goes_on:
        recipe.prepare([example.text.caption for example in found.examples])
        learned = readable(learned, recipe, settings, found)
        held_out = readable(held_out, recipe, settings, found)
        require_enough(replace(found, examples=learned), options)
        write_examples(folder / TRAIN, learned)
        write_examples(folder / HELD_OUT, held_out)
        settings.write(folder)
    learned, held_out = (read_examples(folder / name) for name in (TRAIN, HELD_OUT))
    recipe, result = run_fit(folder, recipe, options, listener, cancel)
    weights = folder / WEIGHTS
    recipe.export(weights, adapter=options.export == "adapter")
    summary = TrainingSummary(
        model=spec.name,
        weights=str(weights),
        trained=len(learned),
        held_out=len(held_out),
        videos=(len({e.path for e in learned}), len({e.path for e in held_out})),
        fit=result,
        left_out=dict(found.left_out),
        failures=tuple(found.failures),
        run=run_key("train"),
    )
    provenance = Provenance.of(spec, consent, settings, recipe, dataset)
    write_card(weights, summary, provenance)
    return summary, provenance


def of_texts(captions: Sequence[str]) -> Gathered:
    """Returns captions without regions as examples, for recipes that need no more."""
    return Gathered(
        [
            Example(
                id=str(number),
                path=f"caption {number}",
                kind="text",
                frames=(),
                masks=(),
                size=(0, 0),
                text=text_of({"caption": caption}),
            )
            for number, caption in enumerate(captions)
        ]
    )


def checked_spec(model: ModelSpec | None) -> ModelSpec:
    """Returns which captioner to train.

    Raises:
        OptionError: When none is named.
        BackendError: When it can't be trained.
    """
    if not isinstance(model, ModelSpec) or model.name == AUTO:
        able = [n for n, one in CAPTIONERS.available().items() if one.training]
        raise OptionError(f"name the captioner to train: {', '.join(able)}")
    recipe_class(model.name)
    if model.options:
        raise OptionError(
            f"model_options ({', '.join(model.options)}) are those of captioning; give "
            "those of training as recipe_options"
        )
    require_packages()
    card = CAPTIONERS[model.name]
    if (model.weights or card.weights) is None:
        raise BackendError(f"{model.name} needs weights to begin with: {card.needs}")
    return model


def consented(spec: ModelSpec) -> str | None:
    """Returns what the user agreed to, where the license wants it.

    Raises:
        LicenseError: When the license forbids to change the weights.
    """
    card = CAPTIONERS[spec.name]
    if card.derivatives:
        return None
    if not spec.accept_license:
        raise LicenseError(
            f"the license of {spec.weights or card.weights} ({card.license}) forbids "
            "to pass on changed weights; give accept_license to train them for "
            "yourself, which is recorded in the model card"
        )
    return f"trained for own use; {card.license} forbids to pass changed weights on"


def settings_of(spec: ModelSpec, options: TrainOptions) -> Settings:
    """Returns all that the training depends on beside its captions."""
    card = CAPTIONERS[spec.name]
    return Settings(
        model=spec.name,
        weights=str(spec.weights or card.weights),
        device=spec.device,
        recipe=dict(options.recipe_options),
        loop=options.loop,
        seed=options.data.seed,
    )


def require_enough(found: Gathered, options: TrainOptions) -> None:
    """Makes sure that there is enough to learn.

    Raises:
        FieldError: When there are fewer captions than wanted; it says why.
    """
    count, least = len(found.examples), options.data.minimum
    if count >= least:
        return
    reasons = ", ".join(f"{n} {why}" for why, n in found.left_out.most_common())
    detail = f"; not learned: {reasons}" if reasons else ""
    failed = f"; {found.failures[0]}" if found.failures else ""
    raise FieldError(
        f"{count} captions of {', '.join(options.data.captions)} can be learned, fewer "
        f"than minimum={least}{detail}{failed}. Accept or edit more of them in the "
        "review panel, or take other ones with review="
    )


def begin(folder: Path, settings: Settings, options: TrainOptions) -> bool:
    """Returns whether the folder holds this very training, begun before.

    Raises:
        OptionError: When it holds another one.
    """
    if options.restart:
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SETTINGS).is_file():
        return False
    before, now = Settings.read(folder).flat(), settings.flat()
    for name, value in now.items():
        if name not in MAY_DIFFER and before.get(name) != value:
            change = "other captions"
            if name != "captions":
                change = f"{name}={before.get(name)!r}, not {value!r}"
            raise OptionError(f"{folder} holds a training with {change}; {ANEW}")
    return True


def readable(
    examples: Sequence[Example],
    recipe: Trainable,
    settings: Settings,
    found: Gathered,
) -> list[Example]:
    """Makes each example's inputs once, and leaves out those that can't be made.

    Each of these is a failure of its own, which is added to ``found``.
    """
    dataset = Examples(examples, recipe, settings.seed)
    good = []
    for place, example in enumerate(examples):
        try:
            dataset[place]
            good.append(example)
        except RegionCapError as error:
            found.fail(str(error))
    return good


def digest(*examples: Sequence[Example]) -> str:
    """Identifies examples by their content."""
    lines = "\n\n".join("\n".join(one.to_json() for one in some) for some in examples)
    return sha256(lines.encode()).hexdigest()


def run_fit(
    folder: Path,
    recipe: Trainable,
    options: TrainOptions,
    listener: ProgressListener | None,
    cancel: threading.Event | None,
) -> tuple[Trainable, Fit]:
    """Runs the loop, in this process or in several."""
    # Canceling is the loop's, which leaves a checkpoint.
    reporter = ProgressReporter(["train"], 1, listener)

    def on_step(step: int, steps: int, loss: float | None) -> None:
        shown = "" if loss is None else f"loss {loss:.4f}"
        reporter.update("train", shown, step, steps)

    if (folder / DONE).is_file():
        pass
    elif options.executor == "ray":
        _fit_on_ray(folder, options)
    elif options.processes > 1:
        _fit_in_processes(folder, options.processes)
    # What others did is only loaded.
    return fit(folder, recipe, on_step=on_step, cancel=cancel)


def _fit_in_processes(folder: Path, count: int) -> None:
    """Runs the loop in several processes of this machine.

    Raises:
        BackendError: When one fails.
    """
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command = [*launcher, "-m", "fiftyone_regioncap.training", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise BackendError(
            f"training with {count} processes failed: {_last_line(done.stderr)}"
        )


def _fit_on_ray(folder: Path, options: TrainOptions) -> None:
    """Runs the loop by Ray Train; its workers read and write the same folder.

    Raises:
        BackendError: When Ray is absent, can't connect, or a worker fails.
    """
    with connected(options.address) as ray:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        cards = int(ray.cluster_resources().get("GPU", 0))
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"folder": str(folder.resolve())},
            scaling_config=ScalingConfig(
                num_workers=options.processes, use_gpu=bool(cards)
            ),
            run_config=RunConfig(storage_path=str(folder.resolve() / "ray")),
        )
        try:
            trainer.fit()
        except Exception as error:  # Ray's own, with the worker's as its cause
            raise BackendError(f"training on Ray failed: {error}") from error


def _ray_worker(config: Mapping[str, str]) -> None:
    fit(Path(config["folder"]))


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if "Error" in line]
    return (errors or text.splitlines() or ["no message"])[-1]
