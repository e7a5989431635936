"""Which trials can train together on one prefill: those that differ in the fuser and its gating only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from c2c_lightning.files import json_digest
from c2c_lightning.nested import flatten

# What a trial may have of its own, by dotted key.
OWN = (
    "ckpt_path",
    "model.fuser",
    "model.gate",
    "model.layer_map",
    "model.layers",
    "model.optimizer",
    "model.prompt_store",
    "trainer.default_root_dir",
)
OF_LOGGERS = ("name", "run_id", "run_name", "save_dir", "tags", "version")


def sharable_key(config: Mapping[str, Any]) -> str:
    """The same for configurations of `fit` whose trials can share their prefill."""
    return json_digest(shared(config))


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys that keep trials from sharing their prefill."""
    flat = [flatten(shared(config)) for config in configs]
    missing = object()
    return sorted(
        key for key in set().union(*flat) if any(f.get(key, missing) != flat[0].get(key, missing) for f in flat)
    )


def shared(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What of a configuration must be the same for all trials."""
    kept = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if path in OWN:
            continue
        if path == "trainer.logger":
            value = [without_names(logger) for logger in value] if isinstance(value, list) else without_names(value)
        kept[key] = shared(value, f"{path}.") if isinstance(value, Mapping) else value
    return kept


def without_names(logger: Any) -> Any:
    """A logger's configuration without what tells one run from another."""
    if not isinstance(logger, Mapping) or "init_args" not in logger:
        return logger
    kept = {key: value for key, value in (logger["init_args"] or {}).items() if key not in OF_LOGGERS}
    return {**logger, "init_args": kept}
