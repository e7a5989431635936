"""Runs a sweep: from its settings to the best configuration."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from rich.console import Console

from c2c_lightning.errors import UserError
from c2c_lightning.runs import Interrupted
from c2c_lightning.sweep.cluster import cluster, room_for
from c2c_lightning.sweep.configuration import merge
from c2c_lightning.sweep.figures import draw_figures
from c2c_lightning.sweep.halving import halving
from c2c_lightning.sweep.labels import short_keys, short_value, shown_score
from c2c_lightning.sweep.ledger import ENDED, Ledger
from c2c_lightning.sweep.live_table import LiveTable
from c2c_lightning.sweep.process import LOG, SECONDS_TO_STOP, wait_until_free
from c2c_lightning.sweep.process_trial import ProcessTrial
from c2c_lightning.sweep.reconcile import reconcile
from c2c_lightning.sweep.results import best_trial, write_best, write_csv
from c2c_lightning.sweep.search import StudySearch, open_study
from c2c_lightning.sweep.seeds import draw_over_seeds, write_over_seeds
from c2c_lightning.sweep.settings import SWEEP_FILE, Sweep
from c2c_lightning.sweep.sharable import sharable_key
from c2c_lightning.sweep.shared_trial import SharedTrial, runners
from c2c_lightning.sweep.space import Space
from c2c_lightning.sweep.tracking import SweepTracker, tracked
from c2c_lightning.sweep.trial import Trial
from c2c_lightning.sweep.watch import Watch
from c2c_lightning.tracking import noted_tracking


def complete(sweep: Sweep, space: Space) -> Sweep:
    """The sweep with what follows from its space: kind of search and number of trials.

    Raises:
        UserError: search, trials and space do not go together.
    """
    search = sweep.search or ("grid" if len(space.grids) == len(space.domains) else "tpe")
    if search != "grid" and space.grids:
        raise UserError(
            f"search is {search}, but space.{space.grids[0]} is a grid, of which every value is tried: "
            "say choice there, or search: grid."
        )
    trials = sweep.trials
    if search == "grid":
        if sweep.first:
            raise UserError("search is grid, which has an order of its own: leave first out.")
        trials = min(trials or math.inf, len(space.grid()))
    elif trials is None:
        raise UserError(f"trials is not given: a {search} search goes on for as many as you say.")
    for point in sweep.first:
        space.encode(point)
    return replace(sweep, search=search, trials=trials)


def run_sweep(sweep: Sweep, folder: Path, address: str | None) -> None:
    """Runs what is left of a sweep, and leaves table, best configuration and figures in its folder.

    Args:
        sweep: complete and checked.
        folder: of the sweep.
        address: of a Ray cluster; None for one of this machine's own.

    Raises:
        UserError: the cluster can never meet the demand, no trial reports the metric, or every trial failed.
        Interrupted: Ctrl-C or SIGTERM; what was trained is kept.
    """
    with interruptible(folder) as signals, ExitStack() as stack:
        with postponed():
            stack.enter_context(cluster(address))
        stack.enter_context(terminated(signals))
        processes = int(min(sweep.concurrent or math.inf, room_for(sweep.resources)))
        with tracked(folder, sweep) as tracker:
            ledger = Ledger(folder)
            left = train(sweep, folder, ledger, tracker, processes)
            if ledger.trials:
                conclude(sweep, folder, ledger.refresh(), tracker)
            if left:
                raise KeyboardInterrupt  # which Tune took for itself
            refuse_failure(ledger.refresh(), folder)


def train(sweep: Sweep, folder: Path, ledger: Ledger, tracker: SweepTracker, processes: int) -> int:
    """Trains what is left of a sweep's trials, so many processes at once; returns how many are left then."""
    space = Space(sweep.space)
    study = open_study(folder, sweep, space)
    for trial in reconcile(study, ledger, sweep):
        tracker.note(trial)
    with LiveTable(sweep.metric, sweep.mode, sweep.trials) as table:
        try:
            with engine(sweep, processes) as chosen:
                search = searcher(sweep, space, study, ledger, tracker, chosen.config)
                if search.left():
                    watch = Watch(sweep, ledger, tracker, table)
                    run_tuner(tuner(sweep, folder, ledger, search, watch, chosen))
        finally:
            for trial in ledger.trials.values():
                if trial.state not in ENDED:
                    tracker.note(ledger.note(trial.number, "waiting", trial.reason))
            table.update(ledger.refresh())
    wait_until_free([trial.folder for trial in ledger.trials.values()], SECONDS_TO_STOP)
    return search.left() + sum(trial.state not in ENDED for trial in ledger.trials.values())


def run_tuner(tuner: tune.Tuner) -> None:
    """Runs Tune, and takes Ctrl-C back from it: it would leave the first one after its end without effect."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        tuner.fit()
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def interruptible(folder: Path) -> Iterator[list[int]]:
    """Ends in a message and in the signal's exit code what Ctrl-C ends, or one of the signals that are yielded."""
    received: list[int] = []
    try:
        yield received
    except KeyboardInterrupt:
        say(f"Stopped. Go on with: python -m c2c_lightning sweep --resume {folder}")
        raise Interrupted(128 + next(iter(received), signal.SIGINT)) from None


@contextmanager
def postponed() -> Iterator[None]:
    """Ctrl-C takes effect when what is done here has been done; a second one at once.

    Ray forks when it starts, and an exception that comes within a fork is lost and leaves logging locked.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt


@contextmanager
def terminated(received: list[int]) -> Iterator[None]:
    """SIGTERM, as a cluster's scheduler sends it, is handled as Ctrl-C is, which Tune knows, and is added to a list.

    To be entered after Ray has started, which would handle it otherwise.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclass
class Engine:
    """How trials are run.

    Attributes:
        trainable: what Tune runs for each, with its demand.
        concurrent: trials at once.
        config: what each is told beside what is its own.
    """

    trainable: Any
    concurrent: int
    config: dict[str, Any]


@contextmanager
def engine(sweep: Sweep, processes: int) -> Iterator[Engine]:
    """The engine that a sweep names, with so many training processes at once."""
    if sweep.engine == "processes":
        demand = {"cpu": sweep.resources.cpus, "gpu": sweep.resources.gpus}
        yield Engine(tune.with_resources(ProcessTrial, demand), processes, {})
        return
    with runners(processes, sweep.resources, sweep.together, Path.cwd()) as pool:
        # The runners have the devices. Who only follows needs none, but has to demand something: a byte.
        yield Engine(
            tune.with_resources(SharedTrial, {"cpu": 0, "memory": 1}), processes * sweep.together, {"pool": pool}
        )


def searcher(
    sweep: Sweep, space: Space, study: optuna.Study, ledger: Ledger, tracker: SweepTracker, config: dict[str, Any]
) -> StudySearch:
    """What suggests trials, and makes their folders and MLflow runs before they begin."""

    def prepare(number: int, values: dict[str, Any]) -> dict[str, Any]:
        if number not in ledger.trials:
            ledger.begin(number, values, merge(sweep.base, sweep.fixed, values))
        trial = ledger.trials[number]
        tracker.begin_trial(trial, title(trial))
        return {
            **config,
            "key": sharable_key(ledger.config(number)),
            "number": number,
            "folder": str(trial.folder.resolve()),
            "working_folder": str(Path.cwd()),
            "metric": sweep.metric,
            "cpus": sweep.resources.cpus,
        }

    return StudySearch(study, space, sweep.trials, prepare, sweep.metric, sweep.mode)


def tuner(sweep: Sweep, folder: Path, ledger: Ledger, search: StudySearch, watch: Watch, chosen: Engine) -> tune.Tuner:
    """Tune, for what is left of a sweep."""
    if sweep.asha is None:
        scheduler = FIFOScheduler()
    else:
        scheduler = halving(sweep.asha, sweep.metric, sweep.mode, ledger.trials.values())
    return tune.Tuner(
        chosen.trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=search.left(),
            max_concurrent_trials=chosen.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str((folder / "ray").resolve()),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            callbacks=[watch],
            verbose=0,
        ),
    )


def title(trial: Trial) -> str:
    """A trial's name in MLflow: its number and its values."""
    short = short_keys(trial.values)
    said = ", ".join(f"{short[key]}={short_value(value)}" for key, value in trial.values.items())
    return f"{trial.name} {said}"[:200]


def conclude(sweep: Sweep, folder: Path, trials: list[Trial], tracker: SweepTracker) -> None:
    """Writes and shows what the sweep has found so far."""
    for trial in trials:
        trial.run_id = noted_tracking(trial.folder).get("run_id")
    files = [folder / SWEEP_FILE, write_csv(trials, folder), *write_over_seeds(trials, sweep.metric, folder)]
    best = best_trial(trials, sweep.metric, sweep.mode)
    metrics, tags = {}, {}
    if best is not None:
        best_file = write_best(best, sweep.metric, folder)
        files.append(best_file)
        metrics = {f"best/{sweep.metric}": best.score(sweep.metric)}
        tags = {"best_trial": title(best)}
    tracker.finish(metrics, tags, files)
    figures = draw_figures(trials, sweep.metric, sweep.mode, folder / "figures")
    figures |= draw_over_seeds(trials, sweep.metric, folder / "figures")
    tracker.keep(list(figures.values()), "figures")
    if best is not None:
        score = f"{sweep.metric} {shown_score(best.score(sweep.metric), sweep.metric)}"
        say(f"best: trial {title(best)}, {score}: {best_file}")
    say(f"sweep.csv and figures/: {folder}")


def refuse_failure(trials: list[Trial], folder: Path) -> None:
    """Says which trials of a sweep that has ended failed, and what can be done.

    Raises:
        UserError: all of them did.
    """
    failed = [trial for trial in trials if trial.state == "failed"]
    if not failed:
        return
    count = f"{len(failed)} of {len(trials)} trials" if len(trials) > 1 else "the trial"
    text = (
        f"{count} failed, trial {failed[0].name} because: {failed[0].reason}\nIts log is {failed[0].folder / LOG}. "
        f"To try again what failed: python -m c2c_lightning sweep --resume {folder}"
    )
    if len(failed) == len(trials):
        raise UserError(text)
    say(text)


def say(text: str) -> None:
    """Prints a line for the user."""
    Console().print(text, soft_wrap=True, markup=False)
