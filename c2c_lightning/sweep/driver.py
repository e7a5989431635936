"""Runs a sweep: from its settings to the best configuration."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

import yaml
from rich.console import Console

from c2c_lightning.errors import UserError
from c2c_lightning.files import write_whole
from c2c_lightning.runs import Interrupted
from c2c_lightning.sweep.figures import draw_figures
from c2c_lightning.sweep.labels import shown_score, title
from c2c_lightning.sweep.live_table import LiveTable
from c2c_lightning.sweep.process import LOG, SECONDS_TO_STOP, FolderBusy, held
from c2c_lightning.sweep.results import draw_over_seeds, over_seeds, ranking, write_best, write_csv, write_over_seeds
from c2c_lightning.sweep.runner import cluster, postponed, room_for
from c2c_lightning.sweep.scheduling import Scheduler
from c2c_lightning.sweep.settings import SWEEP_FILE, Sweep
from c2c_lightning.sweep.space import Space
from c2c_lightning.sweep.tracking import SweepTracker, tracked
from c2c_lightning.sweep.trials import Trial, Trials
from c2c_lightning.tracking import noted_tracking


def complete(sweep: Sweep, space: Space) -> Sweep:
    """The sweep with what follows from its space: kind of search and number of trials; a UserError if they disagree."""
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
    """Runs what is left of a sweep that is complete and checked: leaves table, best configuration, figures in a folder.

    Raises:
        UserError: the cluster can never meet the demand, no trial reports the metric, or every trial failed.
        Interrupted: Ctrl-C or SIGTERM; what was trained is kept.
    """
    trials = Trials(folder, sweep)
    failed = trials.resume()
    write_whole(folder / SWEEP_FILE, yaml.safe_dump(asdict(sweep), sort_keys=False))
    with interruptible(folder), cluster(address):
        processes = int(min(sweep.concurrent or math.inf, room_for(sweep.resources)))
        with tracked(folder, sweep) as tracker:
            for trial in failed:
                tracker.note(trial)
            try:
                train(trials, tracker, processes)
            except KeyboardInterrupt:
                if trials.known:
                    conclude(sweep, folder, trials.refresh(), tracker)
                raise
            conclude(sweep, folder, trials.refresh(), tracker)
            refuse_failure(trials.refresh(), folder)


def train(trials: Trials, tracker: SweepTracker, processes: int) -> None:
    """Trains what is left of a sweep's trials, in so many processes at once."""
    sweep = trials.sweep
    with LiveTable(sweep.metric, sweep.mode, sweep.trials) as table:
        scheduler = Scheduler(trials, tracker, table, processes)
        try:
            going_on = True
            while going_on:
                with postponed():
                    going_on = scheduler.step()
        finally:
            at_work = [trial.folder for group in scheduler.groups for trial in group.trials]
            scheduler.end()
            # What did not stop in time is killed by its parent's end, and may still save.
            with suppress(FolderBusy, OSError), held(at_work, SECONDS_TO_STOP):
                pass


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Ctrl-C, and SIGTERM as a cluster's scheduler sends it, end in a message and in the signal's exit code."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as a script's background jobs have it
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    except KeyboardInterrupt:
        say(f"Stopped. Go on with: python -m c2c_lightning sweep --resume {folder}")
        raise Interrupted(128 + next(iter(received), signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def conclude(sweep: Sweep, folder: Path, trials: list[Trial], tracker: SweepTracker) -> None:
    """Writes and shows what the sweep has found so far."""
    metric = sweep.metric
    for trial in trials:
        trial.run_id = noted_tracking(trial.folder).get("run_id")
    seeds = over_seeds(trials, metric)
    files = [folder / SWEEP_FILE, write_csv(trials, folder), *write_over_seeds(seeds, metric, folder)]
    best = next(iter(ranking(trials, metric, sweep.mode)), None)
    if best is not None:
        files.append(write_best(best, metric, folder))
        tracker.log_metrics({f"best/{metric}": best.score(metric)})
        tracker.set_tags({"best_trial": title(best)})
    for file in files:
        tracker.log_artifact(file)
    figures = draw_figures(trials, metric, sweep.mode, folder / "figures")
    figures |= draw_over_seeds(seeds, metric, folder / "figures")
    for figure in figures.values():
        tracker.log_artifact(figure, "figures")
    if best is not None:
        say(f"best: trial {title(best)}, {metric} {shown_score(best.score(metric), metric)}: {files[-1]}")
    say(f"sweep.csv and figures/: {folder}")


def refuse_failure(trials: list[Trial], folder: Path) -> None:
    """Says which trials of a sweep that has ended failed, and what can be done; a UserError if all of them did."""
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
