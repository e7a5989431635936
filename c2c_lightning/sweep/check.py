"""Whether a sweep's configurations can be run at all, asked before any of them is."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import yaml

from c2c_lightning.communication.layer_map import map_layers
from c2c_lightning.communication.models import kv_shape, load_config
from c2c_lightning.errors import UserError
from c2c_lightning.fuser import Gate
from c2c_lightning.messages import user_message
from c2c_lightning.sweep.configuration import merge
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.space import Space
from c2c_lightning.training import C2CModule
from c2c_lightning.training_cli import C2CCLI, WIRING


class Builder(C2CCLI):
    """Builds model and data of a configuration, and leaves the trainer's devices to the machine that has them."""

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None


def check_configurations(sweep: Sweep, space: Space) -> None:
    """Builds the base and the edges of the space, weights aside.

    Raises:
        UserError: a configuration is refused: what `fit` would say, and of which values.
    """
    for part in ("fabric", "pytorch"):  # every build would say what its seed is
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    check(merge(sweep.base, sweep.fixed), "base and fixed")
    for values in space.edges():
        said = ", ".join(f"{key}: {value}" for key, value in values.items())
        check(merge(sweep.base, sweep.fixed, values), f"space with {said}")


def check(config: Mapping[str, Any], said: str) -> None:
    """Builds one configuration; the message of a refusal begins with what it is a refusal of."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(dict(config), file, sort_keys=False)
        file.flush()
        try:
            # Warnings and progress are for the run itself to give.
            with (
                warnings.catch_warnings(action="ignore"),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                built = Builder(**WIRING, run=False, args=["--config", file.name])
                check_layers(built.model)
        except SystemExit as error:  # how a parser refuses
            message = str(error.code).removeprefix("error: ").replace(file.name, "the configuration")
            raise UserError(f"{said}: {message}") from error
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            raise UserError(f"{said}: {message}") from error


def check_layers(model: C2CModule) -> None:
    """Lays the layer map and the gates over the models' sizes."""
    receiver = kv_shape(load_config(model.receiver))
    for name in model.sharers:
        sharer = kv_shape(load_config(name))
        mapped = map_layers(model.layer_map, model.layers, receiver.num_layers, sharer.num_layers)
        Gate(model.gate, list(mapped), receiver.num_kv_heads)
