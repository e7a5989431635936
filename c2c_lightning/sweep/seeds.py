"""What a sweep found over seeds: each point's mean with its interval, and what differs from the first point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from c2c_lightning.drawing.forest import ACCENT, INK, Estimate, Row, draw_forest
from c2c_lightning.evaluation.report.formatting import points_with_interval
from c2c_lightning.files import write_whole
from c2c_lightning.sweep.labels import NOTHING, cut, is_share, short_keys, short_value, shown_score, shown_time
from c2c_lightning.sweep.space import label
from c2c_lightning.sweep.trials import Trial

SEED, SEEDS_CSV, SEEDS_TABLE = "seed_everything", "seeds.csv", "seeds.md"
C2C, CONTROLS = "val/accuracy/c2c", ("val/accuracy/receiver", "val/accuracy/wrong_question")
PARAMETERS = "fuser/parameters"
CONFIDENCE = 0.95
LONGEST_LABEL = 48


def over_seeds(trials: Sequence[Trial], metric: str) -> pd.DataFrame:
    """A row for each point of the space, its seed aside, that finished under two seeds or more.

    Args:
        trials: of a sweep; only one whose space has `seed_everything` has points under several seeds.
        metric: what they are judged by.

    Returns:
        `point`, `seeds`, and of metric, question-specific gain and difference the mean, and the lower and upper end of
        its 95% t-interval over seeds (`NAME`, `NAME_low`, `NAME_high`); `parameters`, and mean `seconds`. A difference
        is that from the first row under the same seeds. The gain is C2C less the better of receiver and wrong question,
        as validation has them. What is not known is NaN.
    """
    finished = [t for t in trials if t.state == "finished" and t.score(metric) is not None and SEED in t.values]
    points: dict[str, dict[Any, Trial]] = {}
    for trial in finished:
        at = {key: label(value) for key, value in trial.values.items() if key != SEED}
        points.setdefault(repr(at), {})[trial.values[SEED]] = trial
    several = [by_seed for by_seed in points.values() if len(by_seed) > 1]
    rows = []
    for by_seed in several:
        differences = [
            trial.score(metric) - several[0][seed].score(metric)
            for seed, trial in by_seed.items()
            if seed in several[0] and by_seed is not several[0]
        ]
        same = list(by_seed.values())
        gains = [of(trial, C2C) - np.max([of(trial, control) for control in CONTROLS]) for trial in same]
        rows.append(
            {
                "point": point_of(same[0]),
                "seeds": len(same),
                **interval("metric", [trial.score(metric) for trial in same]),
                **interval("gain", gains),
                **interval("difference", differences),
                "parameters": np.mean([of(trial, PARAMETERS) for trial in same]),
                "seconds": np.mean([np.nan if trial.seconds is None else trial.seconds for trial in same]),
            }
        )
    return pd.DataFrame(rows)


def write_over_seeds(table: pd.DataFrame, metric: str, folder: Path) -> list[Path]:
    """Writes the table of `over_seeds` as `seeds.csv`, and as `seeds.md` to be read; nothing if it is empty."""
    if table.empty:
        return []
    write_whole(folder / SEEDS_CSV, table.to_csv(index=False))
    write_whole(folder / SEEDS_TABLE, shown_table(table, metric))
    return [folder / SEEDS_CSV, folder / SEEDS_TABLE]


def draw_over_seeds(table: pd.DataFrame, metric: str, folder: Path) -> dict[str, Path]:
    """Draws each point's mean with its interval; nothing unless the metric is a share and the table has a row.

    Returns:
        By caption the PNG.
    """
    if table.empty or not is_share(metric):
        return {}
    rows = [
        Row(
            cut(row["point"], LONGEST_LABEL),
            Estimate(row["metric"], max(row["metric_low"], 0.0), min(row["metric_high"], 1.0)),
            shown_interval(row, "metric", metric),
            ACCENT if place == 0 else INK,
        )
        for place, row in enumerate(table.to_dict("records"))
    ]
    xlabel = f"{metric}, %: mean over {seeds_of(table)} seeds, 95% t-interval"
    reference = rows[0].estimate.value
    file = draw_forest(rows, xlabel, folder / "seeds.png", reference, "the first")
    return {"Mean over seeds of every point": file}


def shown_table(table: pd.DataFrame, metric: str) -> str:
    """The table as Markdown, shares in percent and their differences in points."""
    rows = []
    for row in table.to_dict("records"):
        rows.append(
            {
                "point": row["point"],
                "parameters": NOTHING if np.isnan(row["parameters"]) else f"{row['parameters']:,.0f}",
                "training": NOTHING if np.isnan(row["seconds"]) else shown_time(row["seconds"]),
                metric: shown_interval(row, "metric", metric),
                "question-specific gain": shown_difference(row, "gain", C2C),
                "beside the first": shown_difference(row, "difference", metric),
            }
        )
    note = f"\nMeans over {seeds_of(table)} seeds, with 95% t-intervals over seeds. The first is {table['point'][0]}.\n"
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n" + note


def seeds_of(table: pd.DataFrame) -> str:
    """How many seeds the points have."""
    return " or ".join(str(count) for count in sorted(set(table["seeds"])))


def shown_interval(row: dict[str, Any], name: str, metric: str) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if is_share(metric):  # which a t-interval does not know
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{shown_score(value, metric)} [{shown_score(low, metric)}, {shown_score(high, metric)}]"


def shown_difference(row: dict[str, Any], name: str, metric: str) -> str:
    estimate = Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])
    if np.isnan(estimate.value):
        return NOTHING
    return points_with_interval(estimate) if is_share(metric) else shown_interval(row, name, metric)


def point_of(trial: Trial) -> str:
    """Where in the space a trial is, its seed aside, in few words."""
    values = {key: value for key, value in trial.values.items() if key != SEED}
    short = short_keys(values)
    said = [
        short_value(value) if len(values) == 1 else f"{short[key]}={short_value(value)}"
        for key, value in values.items()
    ]
    return ", ".join(said)


def of(trial: Trial, metric: str) -> float:
    value = trial.score(metric)
    return np.nan if value is None else value


def interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and ends of the t-interval; of less than two values, or of one that is not known, NaN."""
    mean = low = high = np.nan
    if len(values) > 1 and not np.isnan(values).any():
        mean, error = np.mean(values), stats.sem(values)
        low, high = stats.t.interval(CONFIDENCE, len(values) - 1, mean, error) if error else (mean, mean)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
