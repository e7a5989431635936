"""The configuration of a trial: base files, fixed and sampled values over them; whether it can be run, and with which.

Trials can be trained together on one prefill if they differ in the fuser and its gating only.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2c_lightning.errors import UserError
from c2c_lightning.files import json_digest, read_yaml
from c2c_lightning.fuser import Gate, map_layers
from c2c_lightning.models.loading import kv_shape, load_config
from c2c_lightning.nested import flatten
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.space import Space

if TYPE_CHECKING:
    from c2c_lightning.training import C2CModule

# The dotted keys that a trial may have of its own beside others on the same prefill, names of its runs included.
OWN = re.compile(
    r"(ckpt_path|model\.(fuser|gate|layer_map|layers|optimizer|prompt_store)|trainer\.default_root_dir"
    r"|trainer\.logger(\.\d+)?\.init_args\.(name|run_id|run_name|save_dir|tags|version))(\..*)?"
)


def merge(base: Sequence[str], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Base files, later ones over earlier ones, and over them values by dotted key; interpolations stay as written.

    Raises a UserError if a file is missing or no YAML mapping.
    """
    layers = []
    for file in map(Path, base):
        if not file.is_file():
            raise UserError(f"base names {file}: no such file. Give the configuration file of a fit.")
        layers.append(read_yaml(file, dict[str, Any], "the base", "Give the configuration file of a fit."))
    for key, value in (item for values in overrides for item in values.items()):
        layers.append(reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value))
    return reduce(_laid_over, layers, {})


def _laid_over(old: Any, new: Any) -> Any:
    """One value over another, as the parser of `fit` does it: a mapping goes into what is there.

    Unless it names another class, whose arguments are others, or is a layer map, which is a value as a whole.
    """
    for side in (old, new):
        if not isinstance(side, Mapping) or not all(isinstance(key, str) for key in side):
            return new
    old_class, new_class = (str(side.get("class_path")).rpartition(".")[2] for side in (old, new))
    if "class_path" in new and new_class != old_class:
        return new
    return {**old, **{key: _laid_over(old.get(key), value) for key, value in new.items()}}


def configuration(sweep: Sweep, values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the trial with these sampled values, by dotted key."""
    return merge(sweep.base, sweep.fixed, {} if sweep.date is None else {"model.chat.date": sweep.date}, values)


def check_configurations(sweep: Sweep, space: Space, build: Callable[[Mapping[str, Any]], C2CModule]) -> str | None:
    """Builds base and edges of the space without weights, by `build`, and lays their layers over the models' sizes.

    Returns:
        The day that the trials' chat templates take for today; None if none asks for it.

    Raises:
        UserError: a configuration is refused: why, and of which values.
    """
    day = None
    for values in [{}, *space.edges()]:
        config = configuration(sweep, values)
        try:
            # Warnings and progress are for the run itself to give.
            with (
                warnings.catch_warnings(action="ignore"),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                module = build(config)
                check_layers(module)
        except UserError as error:
            said = ", ".join(f"{key}: {value}" for key, value in values.items())
            raise UserError(f"{f'space with {said}' if values else 'base and fixed'}: {error}") from error
        day = day or module.aligner.chat.date
    return day


def check_layers(module: C2CModule) -> None:
    """Lays the layer map and the gates over the models' sizes."""
    receiver, fusers = kv_shape(load_config(module.receiver)), module.runs[0].fuser_settings
    if fusers["fuser"] is None:
        return
    for name in module.sharers:
        sharer = kv_shape(load_config(name))
        mapped = map_layers(fusers["layer_map"], fusers["layers"], receiver.num_layers, sharer.num_layers)
        Gate(fusers["gate"], list(mapped), receiver.num_kv_heads)


def sharable_key(config: Mapping[str, Any]) -> str:
    """The same for configurations of `fit` whose trials can share their prefill."""
    return json_digest(shared(config))


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys that keep trials from sharing their prefill."""
    flat, missing = [shared(config) for config in configs], object()
    return sorted(
        key for key in set().union(*flat) if any(f.get(key, missing) != flat[0].get(key, missing) for f in flat)
    )


def shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key what of a configuration must be the same for all trials."""
    trainer = config.get("trainer") or {}
    if isinstance(trainer.get("logger"), list):
        numbered = {str(place): logger for place, logger in enumerate(trainer["logger"])}
        config = {**config, "trainer": {**trainer, "logger": numbered}}
    return {key: value for key, value in flatten(config).items() if not OWN.fullmatch(key)}
