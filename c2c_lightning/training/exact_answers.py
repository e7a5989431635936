"""Accuracy where responses are short enough to be right word for word."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from c2c_lightning.communicator import Communicator
from c2c_lightning.models import Reading
from c2c_lightning.models.decoding import GREEDY, generate
from c2c_lightning.models.loading import is_sharded

# A sharer alone may say anything, such as the sentence that it knows.
SHARER_TOKENS = 32


class ExactAnswers(nn.Module):
    """The share of exact greedy answers, by method.

    `c2c`: the receiver on the fused cache; `wrong_question`: the same, fused with the cache of the next
    question in the batch; `receiver` and `sharer` (`sharer_1`, ... of further ones): each alone, that is, without
    any other model's cache. What frozen models answer alone never changes, so they are asked once.

    Args:
        num_sharers: how many sharers answer alone.
    """

    def __init__(self, num_sharers: int):
        super().__init__()
        self.sharers = ["sharer", *(f"sharer_{i}" for i in range(1, num_sharers))]
        # All from the start: their synchronisation is collective, whatever this rank's batches held.
        methods = ["c2c", "wrong_question", "receiver", *self.sharers]
        self.metrics = nn.ModuleDict({method: MeanMetric() for method in methods})
        self.frozen: dict[str, Tensor] = {}
        self.asked = False

    def update(self, communicator: Communicator, reading: Reading, alone: dict[str, list[str]] | None = None) -> None:
        """Answers a batch whose `references` are set, by every method that is still open.

        Args:
            communicator: that answers.
            reading: of the batch.
            alone: what the method `alone` gave for the batch, if another run has asked the frozen models already.
        """
        self.asked, batch = True, reading.batch
        # Ranks that share a model gather it together, so none may leave out a question.
        together = is_sharded(communicator)
        nothing_asked = not batch.response_mask.any()
        if nothing_asked and not together:
            return
        answered = fused_answers(communicator, reading, together)
        if not self.frozen:
            answered |= self.alone(communicator, reading) if alone is None else alone
        for method, answers in answered.items():
            if nothing_asked or (method == "wrong_question" and len(batch) == 1):
                continue
            exact = [answer == reference.strip() for answer, reference in zip(answers, batch.references)]
            self.metrics[method].update(torch.tensor(exact, dtype=torch.float32, device=batch.prompt_ids.device))

    def compute(self, complete: bool = True) -> dict[str, Tensor]:
        """Accuracy by method over all ranks; empty if nothing was asked.

        Args:
            complete: False if only a sample was asked, so that the frozen models' answers are not kept.
        """
        if not self.asked:
            return {}
        values = dict(self.frozen)
        for method, metric in self.metrics.items():
            if method not in self.frozen:
                values[method] = metric.compute()
                metric.reset()
        if complete:
            self.frozen = {method: values[method] for method in ("receiver", *self.sharers)}
        self.asked = False
        return values

    def alone(self, communicator: Communicator, reading: Reading) -> dict[str, list[str]]:
        """What the frozen models answer without any other model's cache, by method."""
        answers = {"receiver": greedy_answers(communicator, reading, fuse=False)}
        for i, method in enumerate(self.sharers):
            prompt, tokenizer = reading.batch.sharers[i], communicator.aligner.sharers[i]
            sharer, limit = communicator.sharers[i], SHARER_TOKENS
            ids = generate(sharer, tokenizer, prompt.ids, prompt.mask, max_new_tokens=limit, **GREEDY)
            texts = tokenizer.batch_decode(ids[:, prompt.ids.shape[1] :], skip_special_tokens=True)
            answers[method] = [text.strip() for text in texts]
        return answers


def fused_answers(communicator: Communicator, reading: Reading, together: bool) -> dict[str, list[str]]:
    """What the receiver answers on the fused cache, by method.

    Args:
        communicator: that answers.
        reading: of the batch.
        together: ranks share the models, so that each must generate as often as the others, also where its batch
            has a single question, of which `wrong_question` means nothing.
    """
    answers = {"c2c": greedy_answers(communicator, reading, fuse=True)}
    if len(reading.batch) > 1 or together:
        answers["wrong_question"] = greedy_answers(communicator, reading.exchanged, fuse=True)
    return answers


def greedy_answers(communicator: Communicator, reading: Reading, fuse: bool) -> list[str]:
    """The receiver's answer to each question, no longer than what can still be right.

    Args:
        communicator: that answers.
        reading: of the batch.
        fuse: False for the receiver alone.
    """
    batch = reading.batch
    # An answer that runs past the longest reference is wrong whatever follows.
    limit = batch.response_ids.shape[1] + 1
    ids = communicator.generate_ids(reading, fuse, max_new_tokens=limit, **GREEDY)
    return communicator.decode(ids[:, batch.prompt_ids.shape[1] :])
