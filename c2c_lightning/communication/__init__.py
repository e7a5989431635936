"""Frozen LMs and a fuser as one communicator: alignment, layer map, prefill, fusion, loss, generation."""

from c2c_lightning.communication.alignment import AlignedPrompt, Aligner, Message
from c2c_lightning.communication.batch import Batch, collate, exchange_questions
from c2c_lightning.communication.communicator import (
    GREEDY,
    Communicator,
    load_aligner,
    load_communicator,
)
from c2c_lightning.communication.fusion import prefill_together
from c2c_lightning.communication.layer_map import LayerMap, Layers
from c2c_lightning.communication.models import load_models
from c2c_lightning.communication.prompt_store import PromptStore
from c2c_lightning.communication.reading import Reading

__all__ = [
    "GREEDY",
    "AlignedPrompt",
    "Aligner",
    "Batch",
    "Communicator",
    "LayerMap",
    "Layers",
    "Message",
    "PromptStore",
    "Reading",
    "collate",
    "exchange_questions",
    "load_aligner",
    "load_communicator",
    "load_models",
    "prefill_together",
]
