"""Whether a sweep's configurations can be run at all, asked before any of them is."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import Gate
from c2c_lightning.fuser.layer_map import map_layers
from c2c_lightning.models.loading import kv_shape, load_config
from c2c_lightning.sweep.configuration import merge
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.space import Space

if TYPE_CHECKING:
    from c2c_lightning.training import C2CModule

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
