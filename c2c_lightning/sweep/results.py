"""What a sweep found, as files: every trial in a table, the best one's configuration, and means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from c2c_lightning.drawing import ACCENT, INK, Estimate, Row, draw_forest
from c2c_lightning.evaluation.report.page import points_with_interval
from c2c_lightning.files import write_whole
from c2c_lightning.runs import TRIAL_FILE
from c2c_lightning.sweep.labels import NOTHING, cut, described, is_share, short_value, shown_score, shown_time
from c2c_lightning.sweep.settings import Mode
from c2c_lightning.sweep.space import label
from c2c_lightning.sweep.trials import JUDGED, Trial

CSV_FILE, BEST_FILE = "sweep.csv", "best.yaml"
SEED, SEEDS_CSV, SEEDS_TABLE = "seed_everything", "seeds.csv", "seeds.md"
C2C, CONTROLS = "val/accuracy/c2c", ["val/accuracy/receiver", "val/accuracy/wrong_question"]
PARAMETERS = "fuser/parameters"
CONFIDENCE = 0.95
LONGEST_LABEL = 48


def ranking(trials: Sequence[Trial], metric: str, mode: Mode) -> list[Trial]:
    """Trials that ended with a score, the best first.

    Finished ones come before those that were stopped early, whose scores are of fewer steps. Of equals the one
    with fewer open layers is first, then the one that was begun first.
    """
    sign = -1 if mode == "max" else 1
    scored = [trial for trial in trials if trial.state in JUDGED and trial.score(metric) is not None]
    return sorted(scored, key=lambda t: (t.state == "stopped", sign * t.score(metric), t.num_open, t.number))


def write_csv(trials: Sequence[Trial], folder: Path) -> Path:
    """Writes `sweep.csv`: a row for each trial with sampled values, state, open layers and its last metrics.

    Lists and mappings are YAML in one line; `seconds` is training time, pauses aside.
    """
    rows = [
        {
            "trial": trial.number,
            **{key: label(value) for key, value in trial.values.items()},
            "state": trial.state,
            "reason": trial.reason,
            "step": trial.step,
            "seconds": trial.seconds,
            "open_layers": trial.num_open,
            **(trial.progress[-1]["metrics"] if trial.progress else {}),
            "run_id": trial.run_id,
            "folder": str(trial.folder),
        }
        for trial in trials
    ]
    # Trials that report later have columns of their own: keep these in front of where a run is to be found.
    last = ["run_id", "folder"]
    table = pd.DataFrame(rows)
    table = table[[column for column in table.columns if column not in last] + last]
    write_whole(folder / CSV_FILE, table.to_csv(index=False))
    return folder / CSV_FILE


def write_best(trial: Trial, metric: str, folder: Path) -> Path:
    """Writes `best.yaml`: the configuration that a trial was trained with, ready for `fit --config best.yaml`.

    It is a copy of the trial's own, and not merged anew: a base file may have been edited since.
    """
    score = shown_score(trial.score(metric), metric)
    says = f"# The best of sweep {folder.name}: trial {trial.name}, {metric} {score} at step {trial.step}.\n"
    write_whole(folder / BEST_FILE, says + (trial.folder / TRIAL_FILE).read_text(encoding="utf-8"))
    return folder / BEST_FILE


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
    rows = []
    for trial in trials:
        if trial.state == "finished" and trial.score(metric) is not None and SEED in trial.values:
            values = {key: value for key, value in trial.values.items() if key != SEED}
            point = short_value(*values.values()) if len(values) == 1 else described(values)
            where = {"values": repr({key: label(value) for key, value in values.items()}), "point": point}
            scores = {name: trial.score(name) for name in (metric, C2C, *CONTROLS, PARAMETERS)}
            rows.append({**where, SEED: trial.values[SEED], "seconds": trial.seconds, **scores})
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).astype(dict.fromkeys([*scores, "seconds"], float)).drop_duplicates(["values", SEED])
    points = [point.set_index(SEED) for _, point in table.groupby("values", sort=False) if len(point) > 1]
    return pd.DataFrame(
        {
            "point": point["point"].iloc[0],
            "seeds": len(point),
            **interval("metric", point[metric]),
            **interval("gain", point[C2C] - point[CONTROLS].max(axis="columns", skipna=False)),
            **interval("difference", (point[metric] - points[0][metric]).dropna() if point is not points[0] else []),
            "parameters": point[PARAMETERS].mean(skipna=False),
            "seconds": point["seconds"].mean(skipna=False),
        }
        for point in points
    )


def interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and ends of the t-interval; of less than two values, or of one that is not known, NaN."""
    mean = low = high = np.nan
    if len(values) > 1:
        mean = np.mean(np.asarray(values))  # pandas' own would pass over what is not known
        half = stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        low, high = mean - half, mean + half
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def write_over_seeds(table: pd.DataFrame, metric: str, folder: Path) -> list[Path]:
    """Writes the table of `over_seeds` as `seeds.csv`, and as `seeds.md` to be read; nothing if it is empty.

    In `seeds.md` shares are in percent and their differences in points.
    """
    if table.empty:
        return []
    rows = [
        {
            "point": row["point"],
            "parameters": NOTHING if np.isnan(row["parameters"]) else f"{row['parameters']:,.0f}",
            "training": NOTHING if np.isnan(row["seconds"]) else shown_time(row["seconds"]),
            metric: shown_interval(row, "metric", metric),
            "question-specific gain": shown_difference(row, "gain", C2C),
            "beside the first": shown_difference(row, "difference", metric),
        }
        for row in table.to_dict("records")
    ]
    note = f"Means over {seeds_of(table)} seeds, with 95% t-intervals over seeds. The first is {table['point'][0]}."
    write_whole(folder / SEEDS_CSV, table.to_csv(index=False))
    shown = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    write_whole(folder / SEEDS_TABLE, f"{shown}\n\n{note}\n")
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
    file = draw_forest(rows, xlabel, folder / "seeds.png", rows[0].estimate.value, "the first")
    return {"Mean over seeds of every point": file}


def seeds_of(table: pd.DataFrame) -> str:
    """How many seeds the points have."""
    return " or ".join(str(count) for count in sorted(set(table["seeds"])))


def shown_interval(row: dict[str, Any], name: str, metric: str) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if is_share(metric):  # which a t-interval does not know
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{shown_score(value, metric)} [{shown_score(low, metric)}, {shown_score(high, metric)}]"


def shown_difference(row: dict[str, Any], name: str, metric: str) -> str:
    if np.isnan(row[name]):
        return NOTHING
    if not is_share(metric):
        return shown_interval(row, name, metric)
    return points_with_interval(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]))
