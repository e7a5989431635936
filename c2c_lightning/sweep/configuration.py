"""The configuration of a trial: base files, fixed and sampled values over them; and whether it can be run at all."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2c_lightning.errors import UserError
from c2c_lightning.files import read_yaml
from c2c_lightning.fuser import Gate, map_layers
from c2c_lightning.models.loading import kv_shape, load_config
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.space import Space

if TYPE_CHECKING:
    from c2c_lightning.training import C2CModule


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
    return read_yaml(Path(file), dict[str, Any], "the base", "Give the configuration file of a fit.")


Build = Callable[[Mapping[str, Any]], "C2CModule"]


def check_configurations(sweep: Sweep, space: Space, build: Build) -> None:
    """Builds the base and the edges of the space, weights aside.

    Args:
        sweep: with base and fixed values.
        space: of the sweep.
        build: makes the module of a configuration without its weights, or raises a UserError.

    Raises:
        UserError: a configuration is refused: why, and of which values.
    """
    check(merge(sweep.base, sweep.fixed), "base and fixed", build)
    for values in space.edges():
        said = ", ".join(f"{key}: {value}" for key, value in values.items())
        check(merge(sweep.base, sweep.fixed, values), f"space with {said}", build)


def check(config: Mapping[str, Any], said: str, build: Build) -> None:
    """Builds one configuration; the message of a refusal begins with what it is a refusal of."""
    try:
        # Warnings and progress are for the run itself to give.
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            check_layers(build(config))
    except UserError as error:
        raise UserError(f"{said}: {error}") from error


def check_layers(module: C2CModule) -> None:
    """Lays the layer map and the gates over the models' sizes."""
    receiver, fusers = kv_shape(load_config(module.receiver)), module.runs[0].fuser_settings
    for name in module.sharers:
        sharer = kv_shape(load_config(name))
        mapped = map_layers(fusers["layer_map"], fusers["layers"], receiver.num_layers, sharer.num_layers)
        Gate(fusers["gate"], list(mapped), receiver.num_kv_heads)
