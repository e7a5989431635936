"""Frozen LMs: loading, alignment of their tokens, batches, caches, and what they make of a prompt."""

from c2c_lightning.models.alignment import AlignedPrompt, Aligner, Message
from c2c_lightning.models.batch import Batch, collate, exchange_questions
from c2c_lightning.models.loading import load_models
from c2c_lightning.models.prompt_store import PromptStore
from c2c_lightning.models.reading import Reading

__all__ = [
    "AlignedPrompt",
    "Aligner",
    "Batch",
    "Message",
    "PromptStore",
    "Reading",
    "collate",
    "exchange_questions",
    "load_models",
]
