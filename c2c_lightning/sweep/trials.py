"""A sweep's trials. The Optuna study in its folder is the only record of what was tried and what became of it.

runs/sweeps/<name>/
  sweep.yaml             the sweep as it was begun
  optuna.journal         the study: each trial's parameters, and how it stands in the user attribute `status`
  trials/<number>/       the folder of an ordinary run, and
    trial.yaml             its configuration, to be given to `fit` as it is
    log.txt                what its processes printed
  sweep.csv, best.yaml   when it has ended; figures/ too

Optuna can reopen no trial whose end it was told. So it is told of trials that finished or were stopped early; one that
failed stays open in it, as one that was cut off does, and is tried again when the sweep is resumed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from typing_extensions import TypedDict

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.files import checked, cut_unfinished_line, read_json_lines, read_yaml, write_whole
from c2c_lightning.runs import PROGRESS_FILE, TRIAL_FILE
from c2c_lightning.sweep.configuration import configuration
from c2c_lightning.sweep.settings import SWEEP_FILE, Sweep
from c2c_lightning.sweep.space import Space

JOURNAL, STUDY = "optuna.journal", "sweep"
STATUS, FORMAT = "status", "format"
VERSION = 2  # of what the study has beside Optuna's own
DIRECTION = {"max": "maximize", "min": "minimize"}
State = Literal["waiting", "running", "finished", "stopped", "failed"]
JUDGED: tuple[State, ...] = ("finished", "stopped")
ENDED: tuple[State, ...] = (*JUDGED, "failed")


class Status(TypedDict):
    """How a trial stands, as the study keeps it; see `Trial`."""

    state: State
    reason: str
    starts: list[float]
    ended: float | None
    stopped_at: int | None
    alone: bool


class Row(TypedDict):
    """A validation, as `training.run_record.add_progress` writes it."""

    time: float
    step: Annotated[int, Field(ge=0)]
    max_steps: Annotated[int, Field(gt=0)]
    metrics: dict[str, float | None]
    gates: list[dict[str, dict[str, float]]]


@dataclass
class Trial:
    """One point of the search space."""

    number: int  # counted from 0 in the order in which trials were begun
    values: dict[str, Any]  # sampled ones by dotted configuration key
    folder: Path  # of its run
    state: State = "waiting"  # `stopped` is early, by the stopping rule
    reason: str = ""  # why it was stopped or failed, or waits again
    starts: list[float] = field(default_factory=list)  # when it was begun and when resumed, in seconds since 1970
    ended: float | None = None  # in seconds since 1970
    stopped_at: int | None = None  # step of the validation that stopped it; it may have been trained a little longer
    alone: bool = False  # it was in a group that crashed, and is trained by itself from then on
    run_id: str | None = None  # of its MLflow run
    progress: list[Row] = field(default_factory=list)  # a row for each validation

    @property
    def name(self) -> str:
        return f"{self.number:03d}"

    @property
    def step(self) -> int:
        """Optimizer steps done at the last validation."""
        return self.progress[-1]["step"] if self.progress else 0

    @property
    def max_steps(self) -> int | None:
        return self.progress[-1]["max_steps"] if self.progress else None

    @property
    def seconds(self) -> float | None:
        """How long it was trained, pauses aside: from every start to the last validation that stems from it."""
        seconds = 0.0
        for start, next_start in pairwise([*self.starts, math.inf]):
            times = [row["time"] for row in self.progress if start <= row["time"] < next_start]
            seconds += max(times, default=start) - start
        return seconds or None

    def seconds_left(self, now: float | None = None) -> float | None:
        """How much longer it will train at the pace so far; None if that is not known.

        Args:
            now: in seconds since 1970; None to count from the last validation.
        """
        if not self.step or self.seconds is None:
            return None
        pace = self.seconds / self.step
        left = pace * (self.max_steps - self.step)
        if now is None:
            return left
        # This clock also ran while nothing was trained: believe it no further than to the next validation.
        before, last = ([0] + [row["step"] for row in self.progress])[-2:]
        since = max(0.0, now - max(self.starts[-1], self.progress[-1]["time"]))
        return max(0.0, left - min(since, pace * (last - before)))

    def score(self, metric: str) -> float | None:
        """The metric at the last validation; None if it was not reported or is not finite."""
        value = self.progress[-1]["metrics"].get(metric) if self.progress else None
        return value if value is not None and math.isfinite(value) else None

    @property
    def num_open(self) -> float | None:
        """Open layers at the last validation, over keys and values and all sharers; a head is its share of a layer."""
        if not self.progress:
            return None
        return sum(sum(shares.values()) for gate in self.progress[-1]["gates"] for shares in gate.values())

    def refresh(self) -> None:
        """Reads what it has reported by now; of one that was stopped, up to that."""
        last = math.inf if self.stopped_at is None else self.stopped_at
        self.progress = [row for row in read_progress(self.folder) if row["step"] <= last]

    def config(self) -> dict[str, Any]:
        """The configuration that it was begun with, whatever has become of the base files since."""
        return read_yaml(self.folder / TRIAL_FILE, dict[str, Any], "the configuration", "Restore it from a copy.")


class Trials:
    """The trials of a sweep, read from the study in its folder; `known` are by number those that have been begun.

    Raises:
        UserError: the study, or what a trial has reported, is damaged or of an earlier version.
    """

    def __init__(self, folder: Path, sweep: Sweep):
        self.folder, self.sweep, self.space = folder, sweep, Space(sweep.space)
        self.study = open_study(folder, sweep.mode)
        begun = [frozen for frozen in self.study.get_trials() if STATUS in frozen.user_attrs]
        self.known: dict[int, Trial] = {frozen.number: self._read(frozen) for frozen in begun}
        self.open: list[int] = []  # numbers of those to be handed out again

    def resume(self) -> list[Trial]:
        """Prepares the study for a driver: trials that were cut off or failed are open, to be handed out again.

        Returns:
            The trials that failed and now wait.
        """
        for trial in self.known.values():
            trial.config()  # before anything starts, if it is damaged
        # Optuna's own GridSampler cannot be asked for one trial after the other.
        points = self.space.grid() if self.sweep.search == "grid" else self.sweep.first
        for point in points[len(self.study.trials) :]:  # the kill of a driver may have come in between
            self.study.enqueue_trial(self.space.encode(point))
        # A sampler that is made anew would draw the same again.
        self.study.sampler = _sampler(self.sweep, (self.sweep.seed + self._begun()) % 2**32)
        failed = []
        for number in (frozen.number for frozen in self.study.get_trials(states=(TrialState.RUNNING,))):
            trial = self.known.get(number)
            if trial is not None and trial.state in JUDGED:
                self._tell(trial)  # the driver was killed before it could
                continue
            self.open.append(number)
            if trial is not None and trial.state == "failed":
                failed.append(self.note(trial, "waiting", f"tried again; it had failed: {trial.reason}"))
        return failed

    def _begun(self) -> int:
        return sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    def left(self) -> int:
        """How many are still to be handed out."""
        return max(0, (self.sweep.trials or 0) - self._begun()) + len(self.open)

    def unended(self) -> list[Trial]:
        """Those that have been begun and have not ended."""
        return [trial for trial in self.known.values() if trial.state not in ENDED]

    def next(self) -> Trial | None:
        """A trial to run: first those that were cut off or failed, then what the sampler suggests; None for no more."""
        if self.open:
            asked = self._asked(self.open.pop(0))
        elif self.left():
            asked = self.study.ask()
        else:
            return None
        if asked.number not in self.known:
            trial = Trial(asked.number, self.space.sample(asked), self._folder(asked.number))
            trial.folder.mkdir(parents=True, exist_ok=True)
            config = configuration(self.sweep, trial.values)
            write_whole(trial.folder / TRIAL_FILE, yaml.safe_dump(config, sort_keys=False))
            self.known[trial.number] = trial
            self.note(trial, "waiting")
        return self.known[asked.number]

    def note(self, trial: Trial, state: State, reason: str = "", stopped_at: int | None = None) -> Trial:
        """Writes down how a trial stands, and reads what it has reported, which is the last time if it has ended.

        Validations after `stopped_at`, the step of the one by which it was stopped, do not count.
        """
        trial.state, trial.reason, trial.stopped_at = state, reason, stopped_at
        if state == "running":
            trial.starts.append(time.time())
        trial.ended = time.time() if state in ENDED else None
        trial.refresh()
        status = {name: getattr(trial, name) for name in Status.__annotations__}
        self._asked(trial.number).set_user_attr(STATUS, status)
        if state in JUDGED:
            self._tell(trial)
        return trial

    def refresh(self) -> list[Trial]:
        """All trials by number, with what those that run have reported by now."""
        for trial in self.unended():
            trial.refresh()
        return [self.known[number] for number in sorted(self.known)]

    def _read(self, frozen: FrozenTrial) -> Trial:
        where = f"the study {self.folder / JOURNAL}: trial {frozen.number}"
        status = checked(frozen.user_attrs[STATUS], Status, where, REMEDY)
        try:
            values = self.space.sample(frozen)
        except (ValueError, KeyError) as error:
            raise UserError(f"{where} has parameters that {SWEEP_FILE} does not have. {REMEDY}") from error
        trial = Trial(frozen.number, values, self._folder(frozen.number), **status)
        if trial.state == "running":
            trial.state = "waiting"  # whoever ran it is gone
        trial.refresh()
        return trial

    def _folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def _asked(self, number: int) -> optuna.Trial:
        """Optuna's trial, which has not ended, to be written to."""
        return optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def _tell(self, trial: Trial) -> None:
        score = trial.score(self.sweep.metric)
        if trial.state == "finished" and score is not None:
            self.study.tell(trial.number, score)
            return
        # The sampler learns from the last value, and from how far the trial came; without a score it is a bad one.
        if trial.step not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            self._asked(trial.number).report(math.nan if score is None else score, trial.step)
        self.study.tell(trial.number, state=TrialState.PRUNED)


REMEDY = "Restore it from a copy, or begin the sweep anew from its sweep.yaml."


def open_study(folder: Path, mode: str) -> optuna.Study:
    """The study in a sweep's folder, begun if there is none.

    Raises:
        UserError: it is damaged, or of an earlier version.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = folder / JOURNAL
    if file.exists():
        cut_unfinished_line(file, "the study")
        read_json_lines(file, dict[str, Any], "the study", REMEDY)
    try:
        storage = JournalStorage(JournalFileBackend(str(file)))
        study = optuna.create_study(storage=storage, study_name=STUDY, direction=DIRECTION[mode], load_if_exists=True)
        if not study.get_trials(deepcopy=False):
            study.set_user_attr(FORMAT, VERSION)
        version = study.user_attrs.get(FORMAT)
    except OSError as error:
        raise UserError(f"the study {file} cannot be written: {error.strerror or error}.") from error
    except Exception as error:  # Optuna applies each line as it stands
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the study {file} is damaged: Optuna cannot read it ({what}). {REMEDY}") from error
    if version != VERSION:
        raise UserError(
            f"the sweep {folder} was begun by another version, which kept its trials in another form: resume it by that "
            f"version, or begin it anew: python -m c2c_lightning sweep --config {folder / SWEEP_FILE}"
        )
    return study


def _sampler(sweep: Sweep, seed: int) -> optuna.samplers.BaseSampler:
    if sweep.search != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    # A third at random, ten at most; trials that still run count as bad, so that neighbours are not tried at once.
    at_random = min(10, max(3, (sweep.trials or 0) // 3))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=at_random, constant_liar=True)


def read_progress(folder: Path) -> list[Row]:
    """The rows of a run's `progress.jsonl` by step; of a step that was done again, the later row."""
    file = folder / PROGRESS_FILE
    if not file.exists():
        return []
    rows = read_json_lines(file, Row, "the progress", "Restore it from a copy, or remove that line.")
    by_step = {row["step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]
