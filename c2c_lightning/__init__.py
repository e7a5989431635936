"""Experiments with large language models that talk to each other through their KV caches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2c_lightning.communicator import Communicator
    from c2c_lightning.formats.cached import Cached

__all__ = ["Cached", "Communicator"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: torch and transformers take seconds, and what supervises a sweep's trials
    # needs neither.
    if name == "Communicator":
        from c2c_lightning.communicator import Communicator

        return Communicator
    if name == "Cached":
        from c2c_lightning.formats.cached import Cached

        return Cached
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
