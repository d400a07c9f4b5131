"""What the package can do: one declaration per operation, read by every door.

The SDK's functions (:mod:`fiftyone_regioncap.api`), the shell's commands
(:mod:`fiftyone_regioncap.cli`) and the App's operators are made from these, so that
what one of them offers, the others offer by the same name. Nothing heavy is imported
before an operation is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.errors import BackendError, OptionError
from fiftyone_regioncap.core.options import OptionField, Options, fields_of, unknown
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.models.registry import (
    AUTO,
    ModelCard,
    ModelRegistry,
    ModelSpec,
)

_ROOMS = "fiftyone_regioncap"
_ALL_MEDIA = ("video", "image", "group")

NONE = "none"
"""Stands for no model where None can't be written, as in a shell."""

REGISTRIES = {
    "propagator": f"{_ROOMS}.propagation.registry:PROPAGATORS",
    "captioner": f"{_ROOMS}.captioning.registry:CAPTIONERS",
}


@dataclass(frozen=True)
class ModelChoice:
    """A model that an operation works with.

    Attributes:
        name: Name of the argument; ``<name>_weights`` and ``<name>_options`` too.
        help: What the model is for.
        default: Name of the default; None when the operation does without by default.
        optional: Whether the operation can do without.
        kind: Key of :data:`REGISTRIES` that it is chosen from; empty for its name.
        only: Attribute of the cards of models that will do; empty for all models.
        media: Media type of the datasets that it is used on; empty for all of the
            operation's.
    """

    name: str
    help: str
    default: str | None = AUTO
    optional: bool = False
    kind: str = ""
    only: str = ""
    media: str = ""

    @property
    def cards(self) -> dict[str, ModelCard]:
        """The cards of the models that it is chosen from, by name."""
        found = self.registry.available()
        return {
            name: card
            for name, card in found.items()
            if not self.only or getattr(card, self.only)
        }

    @property
    def registry(self) -> ModelRegistry[Any]:
        """Where it is chosen from."""
        return resolve(REGISTRIES[self.kind or self.name])

    def require(self, name: str) -> None:
        """Makes sure that a model will do, before it is loaded.

        Raises:
            BackendError: When it won't.
        """
        if self.only and (name == AUTO or self.registry[name].name not in self.cards):
            raise BackendError(
                f"{self.name}={name}: it can't do this; choose one of "
                + ", ".join(self.cards)
            )


@dataclass(frozen=True)
class Operation:
    """Something that is done, mostly to the samples of a dataset or a view.

    Attributes:
        name: Name of the SDK's function.
        label: Title for forms.
        summary: What it does, as a full sentence.
        target: ``"module:Class"`` of its options, in this package.
        run: ``"module:function"``, in this package, of what is no job: called with
            samples, options, and by keyword the models, ``listener`` and ``cancel``.
        stages: Stages of the job that it is, in their order. Of several, each has the
            options of the group of its name.
        models: The models that it works with.
        dry: Whether it only says what would be done, and needs neither FiftyOne's
            database nor weights.
        media: Media types of datasets that it can run on; none where it is done to no
            dataset's samples, which it is then not called with.
        positional: Options that the SDK takes by position.
        arguments: Options and models that the shell takes as arguments.
        action: A verb for the App's target picker; empty for the label's first word.
        operator: Name of the App's operator; empty for the name.
        command: Name of the shell's command; empty for the name with dashes.
        recorded: Whether the board lists its runs, as it does those of all jobs.
    """

    name: str
    label: str
    summary: str
    target: str
    run: str | None = None
    stages: tuple[str, ...] = ()
    models: tuple[ModelChoice, ...] = ()
    dry: bool = False
    media: tuple[str, ...] = ("video", "group")
    positional: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    action: str = ""
    operator: str = ""
    command: str = ""
    recorded: bool = True

    def __post_init__(self) -> None:
        """Derives the names at the other doors from that of the function."""
        for attribute, default in (
            ("action", self.label.split()[0]),
            ("operator", self.name),
            ("command", self.name.replace("_", "-")),
        ):
            value = getattr(self, attribute) or default
            object.__setattr__(self, attribute, value)

    @property
    def options(self) -> type[Options]:
        """The class of its options."""
        return resolve(f"{_ROOMS}.{self.target}")

    @property
    def fields(self) -> tuple[OptionField, ...]:
        """Its options."""
        return fields_of(self.options)

    @property
    def loading(self) -> type[Options] | None:
        """The options of how all its models are loaded; None where it has none."""
        return resolve(f"{_ROOMS}.models.options:LoadOptions") if self.models else None

    @property
    def execution(self) -> type[Options] | None:
        """The options of where its job runs; None for what is no job."""
        target = "jobs.options:ExecutionOptions"
        return resolve(f"{_ROOMS}.{target}") if self.stages else None

    @property
    def settings(self) -> tuple[OptionField, ...]:
        """The options that it shares with others: of loading and of execution."""
        shared = filter(None, (self.loading, self.execution))
        return tuple(field for options in shared for field in fields_of(options))

    def parameters(self) -> list[str]:
        """The names of everything that it can be told."""
        names = [one.name for one in self.fields]
        for model in self.models:
            names += [model.name, f"{model.name}_weights", f"{model.name}_options"]
        return [*names, *(one.name for one in self.settings)]

    def parse(
        self, values: Mapping[str, Any]
    ) -> tuple[Options, dict[str, Any], Options | None]:
        """Validates values by name.

        Args:
            values: As a door gives them; those that are absent have the default.

        Returns:
            The options; by the name of each model its specification, the loaded model
            that was given, or None; and where it runs, None for what is no job.

        Raises:
            OptionError: When a name is unknown or a value doesn't fit.
            BackendError: When there is no such model, or no weights where named.
        """
        known = self.parameters()
        for name in values:
            if name not in known:
                raise OptionError(f"{self.name}: {unknown(name, known)}")
        own = {one.name for one in self.fields}
        options = self.options.from_mapping(
            {name: value for name, value in values.items() if name in own}, self.name
        )
        return options, self._models(values), self._shared(self.execution, values)

    def _shared(
        self, kind: type[Options] | None, values: Mapping[str, Any]
    ) -> Options | None:
        """Reads the options of a kind that it shares with other operations."""
        if kind is None:
            return None
        names = {one.name for one in fields_of(kind)}
        own = {name: value for name, value in values.items() if name in names}
        return kind.from_mapping(own, self.name)

    def _models(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if self.loading is None:
            return {}
        loading: Any = self._shared(self.loading, values)
        chosen: dict[str, Any] = {}
        for model in self.models:
            given = values.get(model.name, model.default)
            if given == NONE and model.optional:
                given = None
            if isinstance(given, bool | int | float | list | tuple | Mapping):
                raise OptionError(f"{model.name}={given!r}: give a name, or a model")
            if given is not None and not isinstance(given, str):
                chosen[model.name] = given
                continue
            weights = values.get(f"{model.name}_weights")
            if weights is not None and not isinstance(weights, str | Path):
                raise OptionError(f"{model.name}_weights={weights!r}: give a path")
            own_options = values.get(f"{model.name}_options") or {}
            if given is None and not (weights or own_options):
                chosen[model.name] = None
                continue
            chosen[model.name] = ModelSpec(
                given or AUTO,
                None if weights is None else str(weights),
                loading.device,
                own_options,
                loading.accept_license,
            )
        if loading.weights is not None:
            self._give_weights(chosen, loading.weights)
        for model in self.models:
            if isinstance(chosen[model.name], ModelSpec):
                model.require(chosen[model.name].name)
                model.registry.check(chosen[model.name], weights=not self.dry)
        return chosen

    def _give_weights(self, chosen: dict[str, Any], weights: str) -> None:
        """Gives ``weights`` to the one model that they can be meant for.

        Raises:
            OptionError: When that is none or several.
        """
        named = {
            model.name: model.registry[chosen[model.name].name]
            for model in self.models
            if isinstance(chosen[model.name], ModelSpec)
            and chosen[model.name].name != AUTO
        }
        if len(named) > 1:
            named = {name: card for name, card in named.items() if card.missing()}
        if len(named) != 1:
            own = " or ".join(f"{model.name}_weights" for model in self.models)
            raise OptionError(
                f"weights={weights!r}: it is not clear which model they are for; name "
                f"the model, or give {own}"
            )
        (name,) = named
        chosen[name] = ModelSpec(**{**vars(chosen[name]), "weights": weights})


PROPAGATOR = ModelChoice("propagator", "Model that carries masks on.")
CAPTIONER = ModelChoice("captioner", "Model that describes.")
SEGMENTER = ModelChoice(
    "segmenter",
    "Model that makes masks of the boxes and points of images; none to take boxes as "
    "they are.",
    optional=True,
    kind="propagator",
    media="image",
)

_OF_MASKS = ModelChoice(
    "propagator",
    "Model that carries masks on, for benchmarks of masks.",
    None,
    optional=True,
)

_DECLARED = (
    Operation(
        "propose",
        "Propose objects",
        "Find the objects of videos that have no prompts.",
        "jobs.options:ProposeOptions",
        stages=("propose",),
        models=(ModelChoice("propagator", "Model that finds the objects."),),
        action="Propose objects for",
        operator="propose_objects",
    ),
    Operation(
        "find_shots",
        "Find shots",
        "Find where videos cut from one shot to the next, to work on shots as clips.",
        "jobs.options:ShotOptions",
        stages=("find_shots",),
        action="Find shots of",
    ),
    Operation(
        "propagate",
        "Propagate masks",
        "Carry the marked objects through videos, as tracks of masks.",
        "jobs.options:PropagateOptions",
        stages=("propagate",),
        models=(PROPAGATOR,),
        positional=("prompts",),
        operator="propagate_masks",
    ),
    Operation(
        "propagate_from",
        "Propagate from here",
        "Make a track anew from a frame that a person corrected; others stay.",
        "jobs.options:CorrectionOptions",
        stages=("correct",),
        models=(PROPAGATOR,),
        action="Propagate",
        operator="propagate_from_here",
    ),
    Operation(
        "split_track",
        "Split a track",
        "Make the later part of a track an object of its own.",
        "jobs.options:SplitOptions",
        stages=("split_track",),
        positional=("object_id", "frame"),
    ),
    Operation(
        "merge_tracks",
        "Merge tracks",
        "Make a track part of another one.",
        "jobs.options:MergeOptions",
        stages=("merge_tracks",),
        positional=("object_id", "into"),
    ),
    Operation(
        "delete_track",
        "Delete a track",
        "Remove a track and the captions of it that nobody reviewed.",
        "jobs.options:DeleteOptions",
        stages=("delete_track",),
        positional=("object_id",),
    ),
    Operation(
        "renumber_track",
        "Renumber a track",
        "Give a track another number.",
        "jobs.options:RenumberOptions",
        stages=("renumber_track",),
        positional=("object_id", "new_id"),
    ),
    Operation(
        "caption",
        "Caption tracks",
        "Describe every track, or every window of it.",
        "jobs.options:CaptionOptions",
        stages=("caption",),
        models=(CAPTIONER,),
        positional=("tracks",),
        operator="caption_tracks",
    ),
    Operation(
        "undo_captions",
        "Undo captions",
        "Put captions back as they were before the last job on their field.",
        "jobs.options:UndoOptions",
        run="jobs.undoing:undo_captions",
        positional=("captions",),
        action="Undo captions of",
    ),
    Operation(
        "propagate_and_caption",
        "Propagate and caption",
        "Mask the marked objects through videos and describe each of them.",
        "jobs.options:PropagateAndCaptionOptions",
        stages=("propagate", "caption"),
        models=(PROPAGATOR, CAPTIONER),
        action="Propagate and caption",
    ),
    Operation(
        "caption_regions",
        "Caption regions",
        "Describe the labeled regions of images.",
        "jobs.options:RegionOptions",
        stages=("caption_regions",),
        models=(CAPTIONER, SEGMENTER),
        media=("image", "group"),
        positional=("field",),
    ),
    Operation(
        "dense_caption",
        "Dense captioning",
        "Describe all parts of images or frames, and map where a text is.",
        "jobs.options:DenseCaptionOptions",
        stages=("caption_densely",),
        models=(
            ModelChoice(
                "captioner", "Model that describes.", "patchioner", only="dense"
            ),
            ModelChoice(
                "propagator",
                "Model that finds the parts; none for clusters of patches that look "
                "alike.",
                None,
                optional=True,
            ),
        ),
        media=_ALL_MEDIA,
        action="Caption",
    ),
    Operation(
        "make_unique",
        "Tell objects apart",
        "State what tells objects apart that have nearly the same captions.",
        "analysis.options:UniqueOptions",
        run="analysis.unique:make_unique",
        models=(
            ModelChoice(
                "captioner",
                "Model that is asked for differences first; none states what was "
                "measured.",
                None,
                optional=True,
            ),
        ),
        media=_ALL_MEDIA,
        positional=("captions",),
        action="Compare",
    ),
    Operation(
        "search_captions",
        "Search captions",
        "Find tracks and regions by what was said of them.",
        "search.options:SearchOptions",
        run="search.results:search",
        media=_ALL_MEDIA,
        positional=("query",),
        arguments=("query",),
        command="search",
        recorded=False,
    ),
    Operation(
        "embed_captions",
        "Embed captions",
        "Put captions on a map; find duplicates, outliers and groups.",
        "search.options:EmbedCaptionsOptions",
        run="visualization.maps:embed_captions",
        media=_ALL_MEDIA,
        positional=("captions",),
    ),
    Operation(
        "embed_regions",
        "Embed regions",
        "Let captions be searched, mapped and checked by how regions look.",
        "jobs.options:EmbedRegionsOptions",
        stages=("embed_regions",),
        models=(
            ModelChoice(
                "captioner", "Model that embeds.", "patchioner", only="text_encoder"
            ),
            replace(SEGMENTER, default=None),
        ),
        media=_ALL_MEDIA,
        positional=("captions",),
    ),
    Operation(
        "extract_facets",
        "Extract facets",
        "Make nouns and attributes of captions into lists to filter by.",
        "analysis.options:FacetOptions",
        run="analysis.facets:extract_facets",
        media=_ALL_MEDIA,
        positional=("captions",),
    ),
    Operation(
        "check_captions",
        "Check captions",
        "Find captions that contradict measurements, others, or themselves.",
        "analysis.options:CheckOptions",
        run="analysis.checks.run:check_captions",
        media=_ALL_MEDIA,
        positional=("captions",),
        command="check",
    ),
    Operation(
        "triage_captions",
        "Triage captions",
        "Keep, review or drop captions by a score, and say how good that is.",
        "analysis.options:TriageOptions",
        run="analysis.checks.triage:triage",
        media=_ALL_MEDIA,
        positional=("captions",),
        command="triage",
    ),
    Operation(
        "evaluate_captions",
        "Evaluate captions",
        "Compare captions with references by the metrics of the literature.",
        "evaluation.options:EvaluateOptions",
        run="evaluation.caption_runs:evaluate_captions",
        media=_ALL_MEDIA,
        positional=("references",),
        command="evaluate captions",
    ),
    Operation(
        "prepare_benchmark",
        "Prepare a benchmark",
        "Make a dataset of a benchmark's published files.",
        "evaluation.benchmarks.options:PrepareOptions",
        run="evaluation.benchmarks.running:prepare_benchmark",
        media=(),
        positional=("benchmark", "folder"),
        arguments=("benchmark",),
        command="benchmark prepare",
    ),
    Operation(
        "run_benchmark",
        "Run a benchmark",
        "Let a captioner answer a benchmark, and score it.",
        "evaluation.benchmarks.options:RunOptions",
        run="evaluation.benchmarks.running:run_benchmark",
        models=(CAPTIONER, _OF_MASKS),
        media=(),
        positional=("benchmark",),
        arguments=("benchmark",),
        command="benchmark run",
    ),
    Operation(
        "score_benchmark",
        "Score a benchmark",
        "Score a file of predictions on a benchmark.",
        "evaluation.benchmarks.options:ScoreOptions",
        run="evaluation.benchmarks.running:score_benchmark",
        media=(),
        positional=("benchmark", "captions"),
        arguments=("benchmark",),
        command="benchmark score",
    ),
    Operation(
        "sweep_benchmark",
        "Sweep a benchmark",
        "Run a benchmark once for each value of some options, and compare.",
        "evaluation.benchmarks.options:SweepOptions",
        run="evaluation.benchmarks.sweeps:sweep_benchmark",
        models=(CAPTIONER, _OF_MASKS),
        media=(),
        positional=("benchmark", "values"),
        arguments=("benchmark",),
        command="sweep",
    ),
    Operation(
        "train",
        "Train captioner",
        "Train a captioner on captions that people accepted or corrected.",
        "training.options:TrainOptions",
        run="training.run:train",
        models=(
            ModelChoice(
                "model", "Captioner to train.", "dam", kind="captioner", only="training"
            ),
            SEGMENTER,
        ),
        media=_ALL_MEDIA,
        arguments=("model",),
        action="Train on",
        operator="train_captioner",
    ),
    Operation(
        "plan",
        "Plan a GPU",
        "Say what fits on a GPU, how much at once, and how fast it can be.",
        "jobs.options:PlanOptions",
        run="jobs.planning:plan",
        models=(
            ModelChoice(
                "propagator", "Model that carries masks on.", None, optional=True
            ),
            ModelChoice("captioner", "Model that describes.", None, optional=True),
            ModelChoice(
                "embedder",
                "Model that embeds regions.",
                None,
                optional=True,
                kind="captioner",
            ),
        ),
        dry=True,
        media=(),
        positional=("gpu",),
        operator="plan_gpu",
    ),
    Operation(
        "compare_captions",
        "Compare captioners",
        "Write the captions of other weights beside those that are there.",
        "training.options:CompareOptions",
        run="training.comparing:compare_captions",
        models=(CAPTIONER, SEGMENTER),
        media=_ALL_MEDIA,
        positional=("captions", "output"),
    ),
    Operation(
        "move_masks",
        "Move masks",
        "Move the masks of tracks from the database to files, or back.",
        "jobs.options:MoveMasksOptions",
        stages=("move_masks",),
        positional=("to",),
    ),
    Operation(
        "conform",
        "Conform videos",
        "Write videos anew at a constant rate where FiftyOne's App misplaces labels.",
        "jobs.options:ConformOptions",
        stages=("conform",),
        operator="conform_videos",
    ),
    Operation(
        "export",
        "Export captions",
        "Write tracks and captions in a format that other tools read.",
        "exporters.options:ExportOptions",
        run="exporters:export",
        positional=("format", "path"),
        operator="export_captions",
    ),
    Operation(
        "import_captions",
        "Import captions",
        "Read tracks and captions of other tools into fields of the videos.",
        "exporters.options:ImportOptions",
        run="exporters:import_captions",
        positional=("format", "path"),
        action="Import into",
        command="import",
    ),
)

OPERATIONS: Mapping[str, Operation] = {one.name: one for one in _DECLARED}
"""The operations by the name of the SDK's function, in the order that people see."""
