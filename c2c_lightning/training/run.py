"""One of the runs that a trainer trains: as a rule the only one, or one of several that share their prefill."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torchmetrics import MeanMetric

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError, first_line
from c2c_lightning.formats.checkpoint import FUSERS
from c2c_lightning.formats.config import FORMAT, mismatch
from c2c_lightning.fuser import PART_NAMES, Fusers
from c2c_lightning.models import Batch, FrozenModels
from c2c_lightning.nested import flatten
from c2c_lightning.runs import CHECKPOINTS, LAST, Interrupted
from c2c_lightning.tracking import MLflowTracker, find_tracker
from c2c_lightning.training.checkpoints import run_folder
from c2c_lightning.training.closed_form import ClosedForm, check_one_process
from c2c_lightning.training.exact_answers import accuracies
from c2c_lightning.training.mappers import TextTraining
from c2c_lightning.training.optimizer import OptimizerConfig
from c2c_lightning.training.sharding import local

LABEL = re.compile(r"run\d+_")
TRACEBACK_FILE = "traceback.txt"
OF_TRAINING = ("model.optimizer.", "model.texts.")  # settings that mean nothing to a validation


class Run:
    """What one run has of its own: fusers, how they are trained, and where its results go.

    Args:
        optimizer: learning rates and their schedule.
        texts: how a mapper is trained.
        **fusers: `fuser_settings`, the keyword arguments of `Fusers`.

    Attributes:
        communicator: the frozen models and this run's fusers; None until the models are loaded.
        label: begins the names of all that is its own where a trainer trains several; otherwise empty.
        fuser_sizes: parameters of each fuser, and of the mapper if there is one.
        val_loss, accuracy: of the validation that is under way.
        sums: of the micro-batches since the last optimizer step: loss, supervised tokens, all of the receiver's tokens.
        loss: of the last optimizer step, by supervised token.
        gate_steps: optimizer steps at which `gate_history` was noted, for each sharer (P, L, H).
        last_metrics: those of a checkpoint that the run goes on from.
    """

    def __init__(self, optimizer: OptimizerConfig, texts: TextTraining | None = None, **fusers: Any):
        self.optimizer, self.texts, self.fuser_settings = optimizer, texts or TextTraining(), fusers
        self.communicator: Communicator | None = None
        self.folder: Path | None = None
        self.loggers: Sequence[Logger] = []
        self.label = ""
        self.fuser_sizes: list[int] = []
        # NaN is what is looked for, so it must not be left out of the mean.
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.accuracy = accuracies(["c2c", "wrong_question"])
        self.gate_steps: list[int] = []
        self.gate_history: list[list[Tensor]] = []
        self.last_metrics: dict[str, float] = {}
        self.sums: float | Tensor = 0.0
        # The first optimizer step that went wrong (-1 for none), its loss and the norm of its gradient: on the device,
        # so that no step has to wait for it.
        self._wrong: Tensor | None = None

    def make_fusers(self, models: FrozenModels) -> None:
        """Puts fresh fusers between models."""
        try:
            self.communicator = Communicator.fresh(models, **self.fuser_settings)
        except RuntimeError as error:  # torch.OutOfMemoryError is of GPUs alone
            if "allocate memory" not in str(error):
                raise
            raise UserError(f"model.fuser is too large for the memory: {first_line(error)[-90:]}.") from error
        try:
            json.dumps(self.communicator.config())
        except TypeError as error:  # now, and not when the trained fuser is exported
            raise UserError(f"model.template_kwargs or model.fuser has what JSON has not: {error}.") from error
        # Counted now: of what is sharded later a device has a part.
        trained = [*self.fusers, *([self.fusers.mapper] if self.fusers.mapper else [])]
        self.fuser_sizes = [sum(p.numel() for p in part.parameters()) for part in trained]
        self.closed_form = ClosedForm(self.communicator)
        groups = self.optimizer.parameter_groups(self.fusers)
        self._shapes = {f"{FUSERS}{name}": tuple(tensor.shape) for name, tensor in self.fusers.state_dict().items()}
        self._learned_shapes = [tuple(parameter.shape) for group in groups for parameter in group["params"]]

    @property
    def fusers(self) -> Fusers:
        return self.communicator.fusers

    @property
    def name(self) -> str:
        """The class of what is trained."""
        trained = self.fusers.mapper if not len(self.fusers) else self.fusers[0]
        return trained.class_path.rpartition(".")[2]

    @property
    def has_steps(self) -> bool:
        """Whether training batches have anything to change: weights that learn, or what fusers collect from."""
        return bool(self.closed_form) or any(parameter.requires_grad for parameter in self.fusers.parameters())

    def check_strategy(self, trainer: L.Trainer) -> None:
        """Raises a UserError if several processes are to train what one process has to."""
        if self.closed_form:
            self.closed_form.check(trainer)
        elif not self.has_steps:
            reason = (
                f"model.mapper is {self.name}, of which nothing is trained after its closed form (NetworkMapper trains)"
            )
            check_one_process(trainer, reason)

    @property
    def tracker(self) -> MLflowTracker | None:
        """Of its MLflow run; None if it has none."""
        return find_tracker(self)

    def track(self, path: Path, folder: str | None = None) -> None:
        """Copies a file or folder to the MLflow run, if there is one."""
        if self.tracker is not None:
            self.tracker.log_artifact(path, folder)

    def training_loss(self, batch: Batch, loss: Tensor, supervised: Tensor) -> Tensor:
        """Notes the loss of a micro-batch, summed over its supervised tokens, and adds the gates' penalty to it."""
        tokens = batch.prompt_mask.sum() + batch.response_mask.sum()
        self.sums = self.sums + torch.stack([loss.detach(), supervised, tokens]).float()
        # Divided by the supervised tokens of the whole step in `on_before_optimizer_step`, so that every token
        # counts the same in whatever micro-batch it is.
        return loss + sum(gate.penalty() for gate in self.fusers.gates) * supervised

    def see_step(self, step: int, gradient_norm: Tensor) -> None:
        """Notes whether an optimizer step's loss and gradient are finite, before the step is made."""
        now = torch.stack([torch.full_like(self.loss, step), self.loss, gradient_norm.to(self.loss)])
        before = torch.full_like(now, -1) if self._wrong is None else self._wrong
        self._wrong = torch.where((before[0] < 0) & ~now.isfinite().all(), now, before)

    def check_finite(self, trainer: L.Trainer, weights_of: str = "") -> None:
        """Waits for the device; raises a UserError if the run's numbers are not finite any more.

        With `weights_of`, which says where they are, weights and gates are looked at too: then all ranks have to ask.
        """
        step, loss, norm = (-1, 0, 0) if self._wrong is None else self._wrong.tolist()
        if step >= 0:
            found = f"train/loss is {loss:g} and the norm of its gradient {norm:g} at step {step:.0f}"
            raise self.not_finite(found)
        if not weights_of:
            return
        # Gates that do not learn are buffers.
        tensors = dict([*self.fusers.named_parameters(), *self.fusers.named_buffers()])
        wrong = torch.stack([(~local(tensor).isfinite()).any() for tensor in tensors.values()]).float()
        wrong = trainer.strategy.reduce(wrong, reduce_op="sum").tolist()
        names = [name for name, count in zip(tensors, wrong) if count]
        if names:
            raise self.not_finite(
                f"{weights_of} {len(names)} of {len(tensors)} tensors hold numbers that are not finite "
                f"({names[0]}, ...)"
            )

    def not_finite(self, found: str) -> UserError:
        """The error that says what is not finite, which checkpoint is good, and what to do."""
        last = self.folder / CHECKPOINTS / LAST
        good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint from before"
        return UserError(f"{found}; {good}. Begin again with a lower model.optimizer.lr.")

    def open_gates(self) -> dict[str, Tensor]:
        """The share of the mapped layers (or heads) whose gate is open, for keys and for values."""
        gates, shares = self.fusers.gates, {}
        for part, name in enumerate(PART_NAMES):
            rows = [gate.is_open()[gate.parts.index(part)].flatten() for gate in gates if part in gate.parts]
            shares[name] = torch.cat(rows).float().mean() if rows else torch.zeros(())
        return shares

    def save(self, dtype: str, trainer: L.Trainer) -> dict[str, Any]:
        """What a checkpoint has of the run besides weights and optimizer."""
        history = {"gate_steps": self.gate_steps, "gate_history": self.gate_history}
        saved = {"c2c": self._settings(dtype), "run": {"metrics": self.metrics(trainer), **history}}
        return saved | ({"held_out": self.closed_form.state()} if self.closed_form else {})

    def load(self, saved: dict[str, Any], dtype: str, fitting: bool) -> None:
        """Takes over what `save` gave.

        Raises:
            UserError: the checkpoint is of another version, or was trained under other settings than this run's;
                Lightning would restore the old learning rate over the one that the user typed.
        """
        if saved.get("c2c", {}).get("format", 1) != FORMAT:
            raise UserError(
                "the checkpoint is of an earlier version, whose optimizer state was laid out otherwise, so it cannot be "
                "resumed: go on with that version, or start without --ckpt_path. As a fuser it can still be loaded."
            )
        now, then = flatten(self._settings(dtype), "model"), flatten(saved["c2c"], "model")
        for key in now.keys() & then.keys():
            if then[key] != now[key] and (fitting or not key.startswith(OF_TRAINING)):
                raise UserError(
                    f"the checkpoint was trained with {key} {then[key]}, but this run says {now[key]}. "
                    "Give the same value to resume, or start without --ckpt_path."
                )
        if "state_dict" in saved:  # of a sharded one torch compares the shapes
            self._check_tensors(saved)
        run = saved["run"]
        self.last_metrics = dict(run["metrics"])
        shapes = [list(gate.logit.shape) for gate in self.fusers.gates]
        for step, gates in zip(run["gate_steps"], run["gate_history"]):
            if (there := [list(gate.shape) for gate in gates]) != shapes:
                raise UserError(
                    f"the checkpoint does not fit this run: its run.gate_history at step {step} is {there}, and would "
                    f"have to be {shapes}. It is damaged: go on from another, or start without --ckpt_path."
                )
        self.gate_steps, self.gate_history = list(run["gate_steps"]), list(run["gate_history"])
        self.closed_form.load(saved.get("held_out", []))

    def _check_tensors(self, saved: dict[str, Any]) -> None:
        """Raises a UserError unless weights and what the optimizer knows of them have this run's shapes."""
        there = {name: tuple(tensor.shape) for name, tensor in own(saved["state_dict"], self.label).items()}
        wrong = mismatch(self._shapes, there)
        for optimizer in saved["optimizer_states"]:
            groups = [group for group in optimizer["param_groups"] if group["name"].startswith(self.label)]
            numbers = [number for group in groups for number in group["params"]]
            if len(numbers) != len(self._learned_shapes):
                wrong = wrong or f"its optimizer has {len(numbers)} parameters, the run {len(self._learned_shapes)}"
            for number, shape in zip(numbers, self._learned_shapes):
                for name, moment in optimizer["state"].get(number, {}).items():
                    if moment.ndim and moment.shape != shape:
                        wrong = wrong or f"its optimizer's {name} {number} is {list(moment.shape)}, not {list(shape)}"
        if wrong:
            raise UserError(
                f"the checkpoint does not fit this run: {wrong}. It is damaged, or a model or the fuser's class has "
                "been changed since: go on from another, or start without --ckpt_path."
            )

    def _settings(self, dtype: str) -> dict[str, Any]:
        """What must be the same for a checkpoint to fit."""
        config = self.communicator.config()
        trained = {"optimizer": asdict(self.optimizer)} | ({"texts": asdict(self.texts)} if self.fusers.mapper else {})
        return {"format": FORMAT, **config, "dtype": dtype, **trained}

    def metrics(self, trainer: L.Trainer) -> dict[str, float]:
        """The newest metrics, sorted by name."""
        newest = own(trainer.callback_metrics, self.label)
        return dict(sorted({**self.last_metrics, **{name: float(value) for name, value in newest.items()}}.items()))

    def note_failure(self, error: BaseException) -> None:
        """Leaves word of what ended the run: a traceback, unless somebody asked it to stop."""
        tracker, stopped = self.tracker, isinstance(error, (Interrupted, KeyboardInterrupt))
        file = self.folder / TRACEBACK_FILE
        with suppress(OSError):  # a full disk may be what ended it
            self.folder.mkdir(parents=True, exist_ok=True)
            if not stopped:
                text = "".join(traceback.format_exception(error))
                file.write_text(text, encoding="utf-8", errors="backslashreplace")
        if tracker is not None:
            tracker.begin(self.folder)
            if file.exists():
                tracker.log_artifact(file)
            if not stopped:
                tracker.set_tags({"error": f"{type(error).__name__}: {error}"[:500]})
            tracker.save_undelivered(self.folder)


def recorded(trainer: L.Trainer) -> Sequence[Run]:
    """The runs that this process keeps the record of: rank 0 does, and nobody of a `fast_dev_run`."""
    return trainer.lightning_module.runs if trainer.is_global_zero and not trainer.fast_dev_run else []


def resumes(trainer: L.Trainer) -> bool:
    """Whether runs go on in their own folders."""
    begun = run_folder(Path(trainer.ckpt_path)) if trainer.ckpt_path else None
    return begun is not None and begun.resolve() == Path(trainer.default_root_dir).resolve()


def own(values: Mapping[str, Any], label: str) -> dict[str, Any]:
    """What belongs to the run of this label, and to all runs, named as in a run that trains alone."""
    found = {name: LABEL.search(name) for name in values} if label else {}
    return {
        name.replace(label, "", 1): value
        for name, value in values.items()
        if found.get(name) is None or found[name].group() == label
    }
