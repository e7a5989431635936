"""Frozen LMs: loading, alignment of their tokens, batches, caches, and what they make of a prompt."""

from c2c_lightning.models.alignment import AlignedPrompt, Aligner, Alignment, Message
from c2c_lightning.models.batch import Batch, collate, exchange_questions
from c2c_lightning.models.chat import ChatConfig
from c2c_lightning.models.loading import check_models, load_aligner, load_models
from c2c_lightning.models.prompt_store import PromptStore
from c2c_lightning.models.reading import FrozenModels, Reading
from c2c_lightning.models.rotation import Rotation

__all__ = [
    "AlignedPrompt",
    "Aligner",
    "Alignment",
    "Batch",
    "ChatConfig",
    "FrozenModels",
    "Message",
    "PromptStore",
    "Reading",
    "Rotation",
    "check_models",
    "collate",
    "exchange_questions",
    "load_aligner",
    "load_models",
]
