"""The configuration of a trial: the base files, what is fixed over them, and the sampled values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from c2c_lightning.errors import UserError, first_line


def merge(base: Sequence[str], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Base files, later ones over earlier ones, and over them values by dotted key.

    Interpolations are kept as they are written.

    Args:
        base: configuration files.
        *overrides: values by dotted key, later ones over earlier ones.

    Raises:
        UserError: a file is missing or no YAML mapping.
    """
    values = [_nested(key, value) for override in overrides for key, value in override.items()]
    return reduce(_laid_over, [*map(_load, base), *values])


def _laid_over(old: Any, new: Any) -> Any:
    """One value over another, as the parser of `fit` does it: a mapping goes into what is there.

    Unless it names another class, whose arguments are others, or is a layer map, which is a value as a whole.
    """
    for side in (old, new):
        if not isinstance(side, Mapping) or not all(isinstance(key, str) for key in side):
            return new
    if "class_path" in new and _class(new) != _class(old):
        return new
    return {**old, **{key: _laid_over(old.get(key), value) for key, value in new.items()}}


def _class(config: Mapping[str, Any]) -> str:
    return str(config.get("class_path")).rpartition(".")[2]


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _load(file: str) -> dict[str, Any]:
    if not Path(file).is_file():
        raise UserError(f"base names {file}: no such file. Give the configuration file of a fit.")
    try:
        config = OmegaConf.load(file)
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"base names {file}, which cannot be read: {first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"base names {file}, which holds no configuration.")
    return OmegaConf.to_container(config)
