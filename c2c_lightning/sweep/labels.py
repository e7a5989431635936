"""How tables and figures of a sweep spell keys, values and scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from c2c_lightning.sweep.space import is_number
from c2c_lightning.sweep.trials import Trial
from c2c_lightning.training.run_record import is_share

NOTHING = "–"
LONGEST_NAME = 26
MOST_LISTS = 8


def varying_keys(trials: Sequence[Trial]) -> list[str]:
    """The sampled keys whose values are not the same for all trials; of a single trial all."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    spelled = {key: {repr(trial.values.get(key, NOTHING)) for trial in trials} for key in keys}
    return [key for key in keys if len(spelled[key]) > 1 or len(trials) == 1]


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """For each dotted key as few of its last parts as tell it from the others."""
    # The word init_args tells nothing from anything.
    parts = {key: [part for part in key.split(".") if part != "init_args"] or [key] for key in keys}
    short = {}
    for key, own in parts.items():
        ends = (own[-count:] for count in range(1, len(own) + 1))
        alone = (end for end in ends if sum(other[-len(end) :] == end for other in parts.values()) == 1)
        short[key] = ".".join(next(alone, [key]))
    return short


def short_value(value: Any) -> str:
    """A value in as few words as leave no doubt: layers as ranges, a class by its name and arguments."""
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case float():
            return f"{value:.4g}"
        case str():
            return value
        case Mapping():
            return _short_mapping(value)
        case Sequence():
            return _short_list(value)
    return str(value)


def described(values: Mapping[str, Any], sign: str = "=") -> str:
    """Values by dotted key in few words."""
    return ", ".join(f"{name}{sign}{short_value(values[key])}" for key, name in short_keys(values).items())


def shown_score(value: float | None, metric: str) -> str:
    """Percent for shares, otherwise four significant digits."""
    if value is None:
        return NOTHING
    return f"{100 * value:.1f}%" if is_share(metric) else f"{value:.4g}"


def shown_time(seconds: float) -> str:
    """A duration, as fine as one needs it while waiting."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def shown_scores(trials: Sequence[Trial], metric: str) -> list[float]:
    """Scores in the metric's `unit`."""
    factor = 100 if is_share(metric) else 1
    return [factor * trial.score(metric) for trial in trials]


def unit(metric: str) -> str:
    """A metric with the unit that it is drawn in."""
    return f"{metric}, %" if is_share(metric) else metric


def title(trial: Trial) -> str:
    """A trial's name in MLflow: its number and its values."""
    return f"{trial.name} {described(trial.values)}"[:200]


def cut(text: str, length: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def plain_parameters(trials: Sequence[Trial], list_members: bool = False) -> dict[str, list[Any]]:
    """What trials differ in, as numbers and short texts.

    A key with so many lists that hardly any comes twice says little as a category: it becomes how long the lists
    are, or with `list_members` a parameter for each of their members. Returned are by short name each trial's values.
    """
    parameters: dict[str, list[Any]] = {}
    for key, name in short_keys(varying_keys(trials)).items():
        values = [trial.values.get(key, NOTHING) for trial in trials]
        if len({repr(value) for value in values}) > MOST_LISTS and all(isinstance(value, list) for value in values):
            if list_members:
                members = dict.fromkeys(member for value in values for member in value)
                ordered = sorted(members, key=lambda member: (str(type(member)), member))
                parameters |= {f"{name}: {short_value(m)}": [m in value for value in values] for m in ordered}
            else:
                parameters[f"number of {name}"] = [len(value) for value in values]
        elif all(map(is_number, values)):
            parameters[name] = values
        else:
            parameters[name] = _names(values)
    return {cut(name, LONGEST_NAME): values for name, values in parameters.items() if len(set(values)) > 1}


def _names(values: Sequence[Any]) -> list[str]:
    """Short texts, different ones for different values; of mappings only what is different."""
    if all(isinstance(value, Mapping) for value in values):
        plain = [{"class_path": None, **value, **value.get("init_args", {}), "init_args": None} for value in values]
        same = {key for key in plain[0] if all(key in each and each[key] == plain[0][key] for each in plain)}
        if "class_path" in same:
            values = [{key: item for key, item in each.items() if key not in same} for each in plain]
    names: dict[str, str] = {}
    for value in values:
        if repr(value) not in names:
            name = cut(short_value(value), LONGEST_NAME)
            same = sum(other.partition(" #")[0] == name for other in names.values())
            names[repr(value)] = f"{name} #{same + 1}" if same else name
    return [names[repr(value)] for value in values]


def _short_mapping(value: Mapping[Any, Any]) -> str:
    value = dict(value)
    name = str(value.pop("class_path", "")).rpartition(".")[2]
    arguments = {**value.pop("init_args", {}), **value} if name else value
    inside = ", ".join(f"{key}={short_value(item)}" for key, item in arguments.items())
    return f"{name}({inside})" if name and inside else name or inside or "{}"


def _short_list(value: Sequence[Any]) -> str:
    if not value:
        return "none"
    if not all(type(item) is int for item in value) or list(value) != sorted(set(value)):
        return ", ".join(map(short_value, value))
    # The members of a run of successive numbers have the same distance to their place.
    runs = [[number for _, number in run] for _, run in itertools.groupby(enumerate(value), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
