"""How a sweep stands, on the terminal: a table that follows its trials, or plain lines in a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from c2c_lightning.sweep.labels import described, short_keys, short_value, shown_score, shown_time, varying_keys
from c2c_lightning.sweep.results import ranking
from c2c_lightning.sweep.settings import Mode
from c2c_lightning.sweep.trials import ENDED, JUDGED, Trial

COLOURS = {"running": "cyan", "waiting": "dim", "finished": "green", "stopped": "yellow", "failed": "red"}
LOG_WIDTH = 160
BEST_SHOWN = 5
# Lines of a terminal that are not rows: title, head with two rules, the rest's counts, and the prompt.
LINES_AROUND = 8


class LiveTable(Live):
    """Keeps the table on a terminal up to date; in a log writes what happens, and the table at the end.

    `total` is how many trials there will be, if that is known.
    """

    def __init__(self, metric: str, mode: Mode, total: int | None = None, console: Console | None = None):
        self.metric, self.mode, self.total = metric, mode, total
        width = None if console or Console().is_terminal else LOG_WIDTH
        super().__init__(console=console or Console(width=width), auto_refresh=False)
        self._written: dict[int, tuple[str, int]] = {}  # trial: state and number of validations

    def show(self, trials: Sequence[Trial]) -> None:
        """Shows how all known trials stand now; to be called every few seconds."""
        if self.console.is_terminal:
            room = max(3, self.console.height - LINES_AROUND)
            table = trial_table(trials, self.metric, self.mode, room, self.total, time.time())
            return self.update(table, refresh=True)
        if not self._written:  # what is there was so before the sweep was resumed
            states = {trial.number: "waiting" if trial.state == "running" else trial.state for trial in trials}
            self._written = {trial.number: (states[trial.number], len(trial.progress)) for trial in trials}
        for trial in trials:
            for line in self._news(trial):
                self.console.print(f"trial {trial.name}: {line}", markup=False, highlight=False, soft_wrap=True)
        self.update(trial_table(trials, self.metric, self.mode, total=self.total))

    def _news(self, trial: Trial) -> list[str]:
        """A line for each validation since the last time, and one for another state."""
        state, rows = self._written.get(trial.number, ("waiting", 0))
        self._written[trial.number] = trial.state, len(trial.progress)
        lines = []
        if trial.state == "running" and state != "running":
            lines.append(f"running with {described(trial.values, ' ')}")
        for row in trial.progress[rows:]:
            score = shown_score(row["metrics"].get(self.metric), self.metric)
            lines.append(f"step {row['step']}/{row['max_steps']}, {self.metric} {score}")
        left = _time_left(trial, None)
        if left and trial.progress[rows:]:
            lines[-1] += f", {left} left"
        if trial.state not in (state, "running"):
            lines.append(_state(trial))
        return lines


def trial_table(
    trials: Sequence[Trial],
    metric: str,
    mode: Mode,
    max_rows: int | None = None,
    total: int | None = None,
    now: float | None = None,
) -> Table:
    """A row for each trial; where they are too many, for those that run and the best, and the rest in numbers.

    Args:
        max_rows: how many rows there is room for, each on one line; None for all, with what is long wrapped.
        now: in seconds since 1970, by which the time left is counted; None to count from the last validations.
    """
    ranked = ranking(trials, metric, mode)
    shown = chosen(trials, ranked, max_rows) if max_rows is not None else list(trials)
    table = Table(box=box.SIMPLE_HEAD, title_style="not italic", caption_style="not italic")
    table.title, table.title_justify = _title(trials, ranked, metric, total, now), "left"
    table.caption, table.caption_justify = _rest(trials, shown), "left"
    for name in ("trial", "values", "step", metric.removeprefix("val/"), "state", "time left"):
        is_long = name in ("values", "state")
        justify = "left" if is_long or name == "trial" else "right"
        table.add_column(Text(name), justify=justify, no_wrap=not is_long, overflow="fold")
    # The shortest first, so that a list of layers cannot push the rest out of sight.
    short = short_keys(varying_keys(trials))
    keys = sorted(short, key=lambda key: max(len(short_value(trial.values.get(key))) for trial in trials))
    # Text, since brackets in values and reasons would be read as rich's markup; cut off where a row has one line.
    cut = {"no_wrap": True, "overflow": "ellipsis"} if max_rows is not None else {}
    for trial in shown:
        values = ", ".join(f"{short[key]} {short_value(trial.values[key])}" for key in keys if key in trial.values)
        table.add_row(
            f"{'★' if trial in ranked[:1] else ' '} {trial.name}",
            Text(values, **cut),
            f"{trial.step}/{trial.max_steps}" if trial.progress else "",
            shown_score(trial.score(metric), metric),
            Text(_state(trial), COLOURS[trial.state], **cut),
            _time_left(trial, now),
            style="bold" if trial in ranked[:1] else None,
        )
    return table


def chosen(trials: Sequence[Trial], ranked: Sequence[Trial], max_rows: int) -> list[Trial]:
    """Of too many trials those to show, by number: what runs, the best few, what failed last, then what ended last."""
    last = sorted(trials, key=lambda trial: (trial.ended or 0.0, trial.number), reverse=True)
    of = {state: [trial for trial in last if trial.state == state] for state in COLOURS}
    ended = [trial for trial in last if trial.state in JUDGED]
    # The best of all is shown however many run.
    order = [*ranked[:1], *reversed(of["running"]), *ranked[1:BEST_SHOWN], *of["failed"][:1], *ended, *trials]
    numbers = list(dict.fromkeys(trial.number for trial in order))[: max(1, max_rows)]
    return [trial for trial in trials if trial.number in numbers]


def seconds_left(trials: Sequence[Trial], total: int, now: float | None = None) -> float | None:
    """How much longer a sweep takes if as many trials run as do now; None as long as that cannot be told."""
    running = [trial.seconds_left(now) for trial in trials if trial.state == "running"]
    lasted = [trial.seconds for trial in trials if trial.state in JUDGED and trial.seconds is not None]
    coming = total - sum(trial.state != "waiting" for trial in trials)
    known = [left for left in running if left is not None]
    if not known or (coming and not lasted):
        return None
    if not coming:
        return max(known)
    work = sum(known) / len(known) * len(running) + coming * sum(lasted) / len(lasted)
    return max(*known, work / len(running))


def _title(trials: Sequence[Trial], ranked: Sequence[Trial], metric: str, total: int | None, now: float | None) -> Text:
    total = max(total or 0, len(trials))
    parts = [f"{sum(trial.state in ENDED for trial in trials)} of {total} trials done"]
    if ranked:
        parts.append(f"best {metric} {shown_score(ranked[0].score(metric), metric)}")
    left = seconds_left(trials, total, now)
    if left is not None:
        parts.append(f"about {shown_time(left)} left")
    return Text(" · ".join(parts))


def _rest(trials: Sequence[Trial], shown: Sequence[Trial]) -> Text | None:
    counts = Counter(trial.state for trial in trials) - Counter(trial.state for trial in shown)
    parts = [Text(f"{counts[state]} {state}", colour) for state, colour in COLOURS.items() if counts[state]]
    return Text.assemble("not shown: ", Text(", ").join(parts)) if parts else None


def _state(trial: Trial) -> str:
    reason = " ".join(trial.reason.split())
    return f"{trial.state}: {reason}" if reason else trial.state


def _time_left(trial: Trial, now: float | None) -> str:
    left = trial.seconds_left(now) if trial.state == "running" else None
    return "" if left is None else shown_time(left)
