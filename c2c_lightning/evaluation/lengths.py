"""Which questions the models have room for."""

from __future__ import annotations

import math

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.benchmarks import Benchmark

TEMPLATE = 1000  # bytes that no chat template exceeds


def too_long(benchmark: Benchmark, communicator: Communicator) -> set[str]:
    """Ids of the questions that, with the response, are longer than one of the models can read."""
    models = (communicator.receiver, *communicator.sharers)
    configs = [model.config.get_text_config(decoder=True) for model in models]
    rooms = [getattr(config, "max_position_embeddings", None) or math.inf for config in configs]
    ids = set()
    for item in benchmark.items():
        messages, response = benchmark.messages(item), benchmark.max_new_tokens_of(item)
        # A token stands for a byte at least: most questions need not be tokenized.
        if sum(len(message["content"].encode()) for message in messages) + TEMPLATE + response <= min(rooms):
            continue
        prompt = communicator.aligner.prompt(messages)
        lengths = map(len, (prompt.receiver_ids, *prompt.sharer_ids))
        if any(length + response > room for length, room in zip(lengths, rooms)):
            ids.add(item.id)
    return ids
