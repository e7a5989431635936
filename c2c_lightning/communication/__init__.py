"""Frozen LMs and a fuser as one communicator: alignment, layer map, prefill, fusion, loss, generation."""

from c2c_lightning.communication.alignment import AlignedPrompt, Aligner, Message
from c2c_lightning.communication.batch import Batch, collate, exchange_questions
from c2c_lightning.communication.communicator import GREEDY, Communicator, load_aligner, load_communicator
from c2c_lightning.communication.layer_map import LayerMap, Layers

__all__ = [
    "GREEDY",
    "AlignedPrompt",
    "Aligner",
    "Batch",
    "Communicator",
    "LayerMap",
    "Layers",
    "Message",
    "collate",
    "exchange_questions",
    "load_aligner",
    "load_communicator",
]
