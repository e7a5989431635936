"""Accuracy where responses are short enough to be right word for word.

Methods: `c2c`, the receiver on the fused cache; `wrong_question`, the same with the sharers' caches of the question's
partner (see `Batch.partners`), and with the partner's private text; `receiver` and `sharer` (`sharer_1`, ... of further
ones), each alone, that is, without any other model's cache. With private texts, `sharer` has them in its prompt, and
there is also `reads_it`, the receiver that reads them itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from c2c_lightning.communicator import Communicator
from c2c_lightning.models import Batch, FrozenModels, Reading, exchange_questions
from c2c_lightning.models.decoding import GREEDY, generate
from c2c_lightning.models.loading import is_sharded

# A sharer alone may say anything, such as the sentence that it knows.
SHARER_TOKENS = 32


def accuracies(methods: Sequence[str]) -> MetricCollection:
    """The share of exact answers, by method."""
    # All from the start: their synchronisation is collective, whatever this rank's batches held.
    return MetricCollection({method: MeanMetric() for method in methods}, compute_groups=False)


class ExactAnswers(nn.Module):
    """Asks a batch's questions of the models alone and of the fusers of every run.

    What frozen models answer alone never changes, so they are asked each question once in a run.
    """

    def __init__(self, num_sharers: int, private: bool = False):
        super().__init__()
        self.sharers = ["sharer", *(f"sharer_{i}" for i in range(1, num_sharers))]
        self.alone = accuracies(["receiver", *self.sharers, *(["reads_it"] if private else [])])
        # By a batch's place in the validation: its checksum, and which answers are exact by method.
        self.known: dict[int, tuple[int, dict[str, list[bool]]]] = {}
        self.asked = False

    def update(self, reading: Reading, runs: Sequence[tuple[Communicator, MetricCollection]]) -> None:
        """Answers a batch whose `references` are set, by the communicators of all runs; counts what is exact."""
        self.asked, batch, models = True, reading.batch, reading.models
        nothing_asked = not batch.response_mask.any()
        # Ranks that share a model gather it together, so none may leave out a question.
        if nothing_asked and not is_sharded(models):
            return
        wrong, other = None, batch.partners
        if other is not None and other.partners is not None:
            wrong = models.read(exchange_questions(other, other.partners))
        elif other is not None:
            wrong = reading.with_sharers_of(models.read(other))
        found = [(self.alone, self._alone(models, reading))]
        for communicator, accuracy in runs:
            answers = {"c2c": greedy_answers(communicator, reading)}
            if wrong is not None:
                answers["wrong_question"] = greedy_answers(communicator, wrong)
            found.append((accuracy, which_are_exact(answers, batch)))
        for accuracy, exact in [] if nothing_asked else found:
            for method, values in exact.items():
                accuracy[method].update(values)

    def _alone(self, models: FrozenModels, reading: Reading) -> dict[str, list[bool]]:
        """Which answers the frozen models get right without any other model's cache, by method."""
        batch = reading.batch
        read = [batch.prompt_ids] if batch.private is None else [batch.prompt_ids, batch.private.ids]
        checksum = zlib.crc32(repr([ids.tolist() for ids in read] + [batch.references]).encode())
        if self.known.get(batch.index, (None,))[0] != checksum:
            asked, prompts = {"receiver": reading}, [(prompt.ids, prompt.mask) for prompt in batch.sharers]
            if batch.private is not None:
                asked = {"receiver": models.read(batch.without_texts()), "reads_it": reading.itself}
                prompts[0] = batch.private.asked_ids, batch.private.asked_mask
            answers = {method: greedy_answers(None, each) for method, each in asked.items()}
            for sharer, (ids, mask), tokenizer, method in zip(
                models.sharers, prompts, models.aligner.sharers, self.sharers
            ):
                said = generate(sharer, tokenizer, ids, mask, max_new_tokens=SHARER_TOKENS, **GREEDY)
                texts = tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
                answers[method] = [text.strip() for text in texts]
            self.known[batch.index] = checksum, which_are_exact(answers, batch)
        return self.known[batch.index][1]


def which_are_exact(answers: Mapping[str, Sequence[str]], batch: Batch) -> dict[str, list[bool]]:
    """Whether each answer is the reference, word for word, by method."""
    references = [reference.strip() for reference in batch.references]
    return {method: [a == r for a, r in zip(texts, references)] for method, texts in answers.items()}


def greedy_answers(communicator: Communicator | None, reading: Reading) -> list[str]:
    """The receiver's answer to each question, no longer than what can still be right; without a communicator, alone."""
    if communicator is not None:
        reading = communicator.read(reading)
    batch, models = reading.batch, reading.models
    cache = reading.receiver_cache() if communicator is None else communicator.fusers.fuse(reading)
    # An answer that runs past the longest reference is wrong whatever follows.
    limit = batch.response_ids.shape[1] + 1
    ids = models.respond(cache, batch, max_new_tokens=limit, **GREEDY)
    return models.decode(ids[:, batch.prompt_ids.shape[1] :])
