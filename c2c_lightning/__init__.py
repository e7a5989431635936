"""Experiments with large language models that talk to each other through their KV caches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2c_lightning.communicator import Communicator
    from c2c_lightning.formats.cached import Cached

__all__ = ["Cached", "Communicator"]
MODULES = {"Cached": "c2c_lightning.formats.cached", "Communicator": "c2c_lightning.communicator"}


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: torch and transformers take seconds, and what supervises a sweep's trials
    # needs neither.
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
