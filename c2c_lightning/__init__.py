"""Experiments with large language models that talk to each other through their KV caches."""

from c2c_lightning.communication import Communicator

__all__ = ["Communicator"]
