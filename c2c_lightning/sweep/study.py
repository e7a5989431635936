"""Trials as Optuna's own, for the figures that Optuna draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from c2c_lightning.sweep.labels import NOTHING, cut, short_keys, short_value, varying_keys
from c2c_lightning.sweep.settings import Mode
from c2c_lightning.sweep.trials import Trial

LONGEST_NAME = 26
MOST_LISTS = 8
DECADES_FOR_LOG = 2


def study_of(scores: Sequence[float], mode: Mode, parameters: dict[str, list[Any]]) -> optuna.Study:
    """A study in memory whose trials are complete, also those that were stopped early.

    Args:
        scores: one for each trial.
        mode: whether more of it is better.
        parameters: by name the value of each trial, as from `plain_parameters`.
    """
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    distributions = {name: distribution(values) for name, values in parameters.items()}
    for place, score in enumerate(scores):
        point = {name: values[place] for name, values in parameters.items()}
        study.add_trial(optuna.create_trial(params=point, distributions=distributions, value=score))
    return study


def plain_parameters(trials: Sequence[Trial], list_members: bool = False) -> dict[str, list[Any]]:
    """What trials differ in, as numbers and short texts.

    A key with so many lists that hardly any comes twice says little as a category: it becomes how long the lists
    are, or else what is in them.

    Args:
        trials: at least two.
        list_members: whether such a key becomes a parameter for each of its lists' members.

    Returns:
        By short name the value of each trial.
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
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            parameters[name] = values
        else:
            parameters[name] = _names(values)
    return {cut(name, LONGEST_NAME): values for name, values in parameters.items() if len(set(values)) > 1}


def distribution(values: Sequence[Any]) -> BaseDistribution:
    """What a parameter with these values may have been sampled from; logarithmic if they are decades apart."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > 10**DECADES_FOR_LOG
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)


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
