"""The training loop: transformers' Trainer around a recipe and plain examples.

Everything that a training depends on is in its folder, so that the same folder can be
trained in this process, in several (``accelerate launch -m fiftyone_regioncap.training
FOLDER``), or on after a kill: the same steps follow, and the same weights come out.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging as transformers_logging

from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.captioning.trainable import Trainable, TrainingDefaults, trained
from fiftyone_regioncap.core.errors import (
    BackendError,
    Canceled,
    OptionError,
    WeightsError,
)
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.models.devices import (
    choose_device,
    choose_dtype,
    is_out_of_memory,
)
from fiftyone_regioncap.models.loading import read_json, read_tensors
from fiftyone_regioncap.models.saving import save_tensors
from fiftyone_regioncap.training.examples import (
    ANEW,
    EpochSampler,
    Examples,
    read_examples,
)
from fiftyone_regioncap.training.options import LoopOptions

SETTINGS = "training.json"
TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
CHECKPOINTS, LOGS, BEST, DONE = "checkpoints", "logs", "best", "done.json"
"""Names in the folder of a training."""

_WEIGHTS = "trained.safetensors"
_EVALUATIONS = "evaluations.json"
_STATE = "trainer_state.json"
OnStep = Callable[[int, int, float | None], None]
"""Called after each step with its number, their total and the newest loss."""


@dataclass(frozen=True)
class Settings:
    """All that a training depends on beside its examples.

    Attributes:
        model: The captioner's name.
        weights: Folder or hub id of the weights to begin with.
        device: Torch device; None for the best there is.
        recipe: Options of the recipe by name.
        loop: Options of the optimization.
        seed: Seed of all chance.
        captions: Identifies the captions that are learned and held out.
    """

    model: str
    weights: str
    device: str | None
    recipe: Mapping[str, Any]
    loop: LoopOptions
    seed: int
    captions: str = ""

    def flat(self) -> dict[str, Any]:
        """Returns all values by the names that users know."""
        own = {name: value for name, value in vars(self).items() if name != "loop"}
        own["recipe_options"] = dict(own.pop("recipe"))
        return {**own, **self.loop.to_mapping()}

    def write(self, folder: Path) -> None:
        """Writes the settings into the folder of the training."""
        document = {**vars(self), "loop": self.loop.to_mapping()}
        write_json(folder / SETTINGS, document)

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Reads the settings of a folder.

        Raises:
            WeightsError: When it holds no training, or a damaged one.
        """
        path = folder / SETTINGS
        if not path.is_file():
            raise WeightsError(
                f"{path} is missing; give the folder of a training that was begun by "
                "`regioncap train`"
            )
        values = read_json(path, ANEW)
        try:
            loop = LoopOptions.from_mapping(values.pop("loop"))
            return cls(loop=loop, **values)
        except (KeyError, TypeError) as error:
            raise WeightsError(
                f"{path} has no settings of a training ({error}); {ANEW}"
            ) from error

    def recipe_options(self) -> Options:
        """Returns the recipe's options.

        Raises:
            OptionError: When one is unknown or doesn't fit.
        """
        card = CAPTIONERS[self.model]
        owner = f"training of {self.model}"
        return card.training_options.from_mapping(self.recipe, owner)

    def load(self) -> Trainable:
        """Loads the recipe with its weights.

        Raises:
            BackendError: When the captioner can't be trained, or the device is missing.
            WeightsError: When the weights are not to be had.
        """
        recipe = recipe_class(self.model)
        dtype = getattr(torch, precision(self.loop.precision, self.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # of weights that are new
            made = recipe.from_pretrained(
                self.weights,
                device=self.device,
                dtype=dtype,
                options=self.recipe_options(),
            )
        for parameter in trained(made.network).values():
            parameter.data = parameter.data.float()
        return made


def require_packages() -> None:
    """Makes sure that what training needs is installed.

    Raises:
        BackendError: When something is missing; it says how to get it.
    """
    missing = [name for name in ("accelerate", "peft") if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"training needs {' and '.join(missing)}; run "
            f"`pip install {' '.join(missing)}`"
        )


def recipe_class(model: str) -> type[Trainable]:
    """Returns the recipe of a captioner.

    Raises:
        BackendError: When it has none.
    """
    card = CAPTIONERS[model]
    if card.training is None:
        able = [name for name, one in CAPTIONERS.available().items() if one.training]
        raise BackendError(
            f"the captioner {model!r} can't be trained; {', '.join(able)} can"
        )
    return resolve(card.training)


def precision(given: str | None, device: str | None) -> str:
    """Returns the number format of a training.

    Raises:
        OptionError: When the device can't train in it.
        BackendError: When there is no such device, or it only emulates bfloat16.
    """
    place = choose_device(device)
    if given == "float16" and place.type == "cpu":
        raise OptionError(
            "precision=float16 needs a GPU; give bfloat16 or float32, or a device"
        )
    return str(choose_dtype(given, place)).removeprefix("torch.")


@dataclass(frozen=True)
class Fit:
    """What a training came to.

    Attributes:
        steps: Number of steps taken.
        best_step: The step whose weights are kept.
        history: Logged values, each with its ``step``.
        evaluations: Values on the held-out examples by step.
    """

    steps: int
    best_step: int
    history: tuple[Mapping[str, float], ...]
    evaluations: Mapping[int, Mapping[str, float]]


def fit(
    folder: Path,
    recipe: Trainable | None = None,
    *,
    on_step: OnStep | None = None,
    cancel: threading.Event | None = None,
) -> tuple[Trainable, Fit]:
    """Trains what a folder describes, from its last whole checkpoint on.

    Args:
        folder: Folder with settings and examples.
        recipe: The recipe, where it is loaded already.
        on_step: Called after each step.
        cancel: Set it to stop after the step at hand, with a checkpoint.

    Returns:
        The recipe with the best weights, and what it came to.

    Raises:
        BackendError: When memory runs out, or the loss is no number.
        Canceled: When ``cancel`` was set.
    """
    require_packages()
    settings = Settings.read(folder)
    recipe = recipe or settings.load()
    if (folder / DONE).is_file():
        return recipe, finished(folder, recipe)
    train, held_out = (
        Examples(read_examples(folder / name), recipe, settings.seed)
        for name in (TRAIN, HELD_OUT)
    )
    recipe.prepare([example.text.caption for example in train.examples])
    arguments = arguments_of(settings, recipe.defaults, folder, bool(len(held_out)))
    begin = last_checkpoint(folder / CHECKPOINTS)
    done = 0 if begin is None else read_json(begin / _STATE)["global_step"]
    keeper = Keeper(folder, settings.loop, done)
    with _quiet():
        trainer = CaptionTrainer(
            recipe=recipe,
            settings=settings,
            keeper=keeper,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out if len(held_out) else None,
            data_collator=recipe.collate,
            callbacks=[Watch(on_step, cancel), *_tensorboard(folder)],
        )
        trainer.remove_callback(PrinterCallback)
        if settings.loop.gradient_checkpointing:
            recipe.network.checkpoint_activations()
        try:
            trainer.train(resume_from_checkpoint=begin and str(begin))
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(settings.loop, folder) from error
            raise
    if cancel is not None and cancel.is_set():
        raise Canceled("canceled; run the same training again to go on from here")
    if trainer.is_world_process_zero():
        document = {
            "steps": trainer.state.global_step,
            "best_step": keeper.best() or trainer.state.global_step,
            "history": trainer.state.log_history,
            "evaluations": keeper.evaluations,
        }
        write_json(folder / DONE, document)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:  # its pieces are of no use here; the next call loads
        return recipe, read_fit(folder)
    return recipe, finished(folder, recipe)


def finished(folder: Path, recipe: Trainable) -> Fit:
    """Gives a recipe the best weights of a training that is done; the last without any.

    Returns:
        What it came to.

    Raises:
        WeightsError: When the weights are damaged.
    """
    found = folder / BEST / _WEIGHTS
    if not found.is_file():
        last = last_checkpoint(folder / CHECKPOINTS)  # each epoch ends with one
        if last is None:
            raise WeightsError(f"{folder / CHECKPOINTS} has no whole one; {ANEW}")
        found = last / _WEIGHTS
    recipe.prepare([e.text.caption for e in read_examples(folder / TRAIN)])
    load_trained(found, recipe.network)
    recipe.network.eval()
    return read_fit(folder)


def read_fit(folder: Path) -> Fit:
    """Reads what a training that is done came to."""
    done = read_json(folder / DONE, ANEW)
    evaluations = {int(step): one for step, one in done["evaluations"].items()}
    return Fit(done["steps"], done["best_step"], tuple(done["history"]), evaluations)


def arguments_of(
    settings: Settings, defaults: TrainingDefaults, folder: Path, evaluated: bool
) -> TrainingArguments:
    """Returns the Trainer's own arguments."""
    loop = settings.loop

    def chosen(name: str) -> Any:
        given = getattr(loop, name)
        return getattr(defaults, name) if given is None else given

    kind = precision(loop.precision, settings.device)
    schedule = chosen("schedule")
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=loop.epochs,
        per_device_train_batch_size=loop.batch_size,
        per_device_eval_batch_size=loop.batch_size,
        gradient_accumulation_steps=loop.accumulation,
        learning_rate=chosen("learning_rate"),
        weight_decay=chosen("weight_decay"),
        adam_epsilon=defaults.epsilon,
        lr_scheduler_type=(
            "constant_with_warmup" if schedule == "constant" else schedule
        ),
        warmup_steps=chosen("warmup"),
        max_grad_norm=chosen("max_grad_norm"),
        bf16=kind == "bfloat16",
        fp16=kind == "float16",
        use_cpu=choose_device(settings.device).type == "cpu",
        optim="adamw_torch",
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if evaluated else "no",
        save_strategy="steps" if loop.checkpoint_steps else "epoch",
        save_steps=loop.checkpoint_steps or 500,
        save_total_limit=loop.checkpoints,
        dataloader_num_workers=loop.workers,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        # Views that are equal pass adapters by, and then those get no gradient.
        ddp_find_unused_parameters=True,
        disable_tqdm=True,
        report_to=[],
    )
    # One process, one device: several are several processes.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class CaptionTrainer(Trainer):
    """transformers' Trainer, which keeps only what trains.

    Args:
        recipe: What is trained.
        settings: Its settings.
        keeper: Keeps the best weights.
        **arguments: The Trainer's own arguments.
    """

    def __init__(
        self, recipe: Trainable, settings: Settings, keeper: Keeper, **arguments: Any
    ) -> None:
        self._recipe, self._settings, self._keeper = recipe, settings, keeper
        self._names = list(trained(recipe.network))  # before anything wraps it
        super().__init__(model=recipe.network, **arguments)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        examples = (train_dataset or self.train_dataset).examples
        weights = [example.weight for example in examples]
        return EpochSampler(weights, self._settings.seed)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Makes AdamW: matrices decay, and parts may have rates of their own."""
        made: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if made is None:
            rates = self._recipe.defaults.rates
            groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
            for name, parameter in trained(model or self.model).items():
                name = name.removeprefix("module.").removeprefix(
                    "_fsdp_wrapped_module."
                )
                rate = next((r for p, r in rates.items() if name.startswith(p)), 1.0)
                groups.setdefault((rate, parameter.ndim >= 2), []).append(parameter)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            decay, highest = self.args.weight_decay, self.args.learning_rate
            self.optimizer = kind(
                [
                    {
                        "params": parameters,
                        "lr": highest * rate,
                        "weight_decay": decay if matrices else 0.0,
                    }
                    for (rate, matrices), parameters in groups.items()
                ],
                **settings,
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None:
            state_dict = self.accelerator.unwrap_model(self.model).state_dict()
        tensors = {name: state_dict[name] for name in self._names}
        save_tensors(folder / _WEIGHTS, tensors)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_trained(Path(resume_from_checkpoint) / _WEIGHTS, self.model)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Computes the loss on the held-out examples, and the metrics of captions."""
        metrics = super().evaluate(*args, **kwargs)
        if self._settings.loop.metrics and self.is_world_process_zero():
            scores = self._scores()
            metrics |= {f"eval_{name}": value for name, value in scores.items()}
            self.log({f"eval_{name}": value for name, value in scores.items()})
        from accelerate.utils import broadcast_object_list

        # All processes have to decide alike.
        (metrics,) = broadcast_object_list([metrics])
        step = self.state.global_step
        if self.is_in_train:
            if self._keeper.decide(step, metrics, self.control):
                self.save_model(str(self._keeper.folder), _internal_call=True)
            if self.is_world_process_zero():
                self._keeper.write()
        return metrics

    def _scores(self) -> dict[str, float]:
        from fiftyone_regioncap.evaluation.captions import score_captions

        held_out = self.eval_dataset
        assert isinstance(held_out, Examples)
        captions = written(self._recipe, held_out, self._settings.loop.evaluated)
        if not captions:
            return {}
        said = {e.id: e.text.caption for e in held_out.examples}
        return score_captions(
            captions,
            {key: [said[key]] for key in captions},
            self._settings.loop.metrics,
        ).overall


def written(recipe: Trainable, examples: Examples, most: int) -> dict[str, str]:
    """Writes captions of examples as the recipe's captioner does, by id."""
    recipe.network.eval()
    captioner = recipe.captioner()
    chosen = examples.examples[:most]
    found: dict[str, str] = {}
    size = captioner.info.batch_size
    for start in range(0, len(chosen), size):
        some = chosen[start : start + size]
        clips = [examples.reader.clip(example) for example in some]
        for example, caption in zip(some, caption_batch(captioner, clips), strict=True):
            found[example.id] = caption.text
    return found


class Keeper:
    """Keeps the best weights, and stops when they get no better.

    What it does at a step depends only on the evaluations up to it, which are kept by
    step: a resumed training decides alike.

    Args:
        folder: Folder of the training.
        loop: Options of the optimization.
        begin: The step that the training goes on from.

    Attributes:
        folder: Folder of the best weights.
        evaluations: Values on the held-out examples by step.
    """

    def __init__(self, folder: Path, loop: LoopOptions, begin: int) -> None:
        self.folder, self._loop = folder / BEST, loop
        path = self.folder / _EVALUATIONS
        known = read_json(path, ANEW) if path.is_file() and begin else {}
        self.evaluations: dict[int, dict[str, float]] = {
            int(step): values for step, values in known.items() if int(step) <= begin
        }

    def decide(
        self, step: int, metrics: Mapping[str, float], control: TrainerControl
    ) -> bool:
        """Returns whether a step is the best so far; may stop the training.

        Args:
            step: The step at hand.
            metrics: What was evaluated.
            control: Control of the training.
        """
        self.evaluations[step] = {
            name.removeprefix("eval_"): value
            for name, value in metrics.items()
            if isinstance(value, int | float)
            and not name.endswith(("_runtime", "_per_second"))
        }
        best = self.best()
        since = sum(one > best for one in self.evaluations) if best else 0
        if self._loop.patience is not None and since >= self._loop.patience:
            control.should_training_stop = True
        return best == step

    def write(self) -> None:
        """Writes the evaluations; once the best weights are there."""
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / _EVALUATIONS, self.evaluations)

    def best(self) -> int | None:
        """Returns the step of the best evaluation, the earliest of equals."""
        name = self._loop.best
        lower = name.endswith("loss")
        values = {
            step: value
            for step, metrics in self.evaluations.items()
            if (value := metrics.get(name)) is not None
        }
        if not values:
            return None
        return min(values, key=lambda s: (values[s] if lower else -values[s], s))


class Watch(TrainerCallback):
    """Reports steps, and stops a training that was canceled or went astray."""

    def __init__(self, on_step: OnStep | None, cancel: threading.Event | None) -> None:
        self._on_step, self._cancel = on_step, cancel
        self._loss: float | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remembers the loss.

        Raises:
            BackendError: When it is no number.
        """
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise BackendError(
                f"the loss of step {state.global_step} is {loss}: lower learning_rate, "
                "or give precision=float32; the checkpoints of earlier steps stay"
            )
        self._loss = loss
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps, loss)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stops with a checkpoint when that is wanted."""
        if self._cancel is not None and self._cancel.is_set():
            control.should_training_stop = control.should_save = True


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file; it is whole or not there."""
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(document, indent=2, sort_keys=True)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def load_trained(path: Path, network: nn.Module) -> None:
    """Loads the trained weights of a checkpoint.

    Raises:
        WeightsError: When they are of another training, or damaged.
    """
    places = trained(network)
    try:
        tensors = dict(read_tensors(path))
    except WeightsError as error:
        raise WeightsError(f"{path} is missing or damaged; {ANEW}") from error
    if tensors.keys() != places.keys():
        odd = sorted(tensors.keys() ^ places.keys())
        raise WeightsError(
            f"{path} is of another training ({', '.join(odd[:3])}); {ANEW}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)


def remove(folder: Path) -> None:
    """Removes what a training left in its folder, but not its weights."""
    for name in (CHECKPOINTS, LOGS, BEST):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (SETTINGS, TRAIN, HELD_OUT, DONE):
        (folder / name).unlink(missing_ok=True)


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint; removes what a kill left unfinished."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        number = path.name.removeprefix("checkpoint-")
        if not number.isdigit():
            continue
        if is_whole(path):
            found[int(number)] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return found[max(found)] if found else None


def is_whole(checkpoint: Path) -> bool:
    """Returns whether all of a checkpoint was written, and nothing was cut off."""
    try:
        read_json(checkpoint / _STATE)  # which is written last
        list(read_tensors(checkpoint / _WEIGHTS, lambda name: False))
    except WeightsError:
        return False
    optimizers = list(checkpoint.glob("optimizer.*"))  # .pt, or .bin of FSDP
    saved = [checkpoint / "scheduler.pt", *optimizers, *checkpoint.glob("rng_state*")]
    return bool(optimizers) and all(map(is_zipfile, saved))


def out_of_memory(loop: LoopOptions, folder: Path) -> BackendError:
    """Returns the error that says what to lower."""
    advice = []
    if loop.batch_size > 1:
        half = loop.batch_size // 2
        advice.append(
            f"batch_size (now {loop.batch_size}) to {half} and raise accumulation "
            f"(now {loop.accumulation}) to {loop.accumulation * 2}"
        )
    if not loop.gradient_checkpointing:
        advice.append("memory by gradient_checkpointing=True")
    advice.append("the size of inputs by the recipe's options, or train less")
    begin = last_checkpoint(folder / CHECKPOINTS)
    kept = f"; {begin.name} is kept" if begin else ""
    return BackendError(f"out of memory: lower {', or '.join(advice)}{kept}")


def _tensorboard(folder: Path) -> list[TrainerCallback]:
    """Returns what writes the logs; nothing where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    if int(os.environ.get("RANK", "0")):
        return []
    return [TensorBoardCallback(SummaryWriter(str(folder / LOGS)))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what transformers reports of a training; we do that."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
