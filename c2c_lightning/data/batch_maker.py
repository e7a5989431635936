"""Examples -> tokens, aligned between the models -> a padded batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

from c2c_lightning.data.records import Example, MalformedTally
from c2c_lightning.errors import UserError
from c2c_lightning.models import AlignedPrompt, Aligner, Batch, collate

log = logging.getLogger(__name__)

LEFT_OUT = ("too_long", "refused")  # the reasons why an example is missing from a batch


class BatchMaker:
    """Tokenizes and aligns examples; leaves out those that cannot be used, and says so in the batch.

    Args:
        aligner: reads conversations for the models.
        max_length: tokens that prompt and response may have, for any of the models.
        exact_answers: put the responses' text into the batch.
    """

    def __init__(self, aligner: Aligner, max_length: int, exact_answers: bool):
        self.aligner, self.max_length, self.exact_answers = aligner, max_length, exact_answers
        self.refused = MalformedTally("the models' chat templates")

    def __call__(self, examples: Sequence[Example], partners: Sequence[Iterable[Example]] | None = None) -> Batch:
        """A batch of examples.

        Args:
            examples: to tokenize.
            partners: for each of them other questions, the best first; see `Batch.partners`.
        """
        prompts, responses, references, others = [], [], [], []
        skipped: Counter[str] = Counter()
        for i, example in enumerate(examples):
            self.refused.seen += 1
            try:
                prompt, response, num_tokens = self._read(example)
            except UserError as reason:  # one template may refuse what another takes
                skipped["refused"] += 1
                self.refused.skip(example.source, str(reason))
                self.refused.check()
                continue
            if num_tokens > self.max_length:
                skipped["too_long"] += 1
                log.info("left out %s: %d tokens", example.source, num_tokens)
                continue
            prompts.append(prompt)
            responses.append(response)
            references.append(example.response)
            if partners is not None:
                others.append(self._first_readable(partners[i]))
        if not prompts:
            # A rank that has nothing to learn from must take part in the step all the same.
            prompts, responses = [self.aligner.prompt([{"role": "user", "content": "-"}])], [[]]
            references = [""]
            others = [] if partners is None else prompts
        batch = collate(prompts, responses, self.aligner.pad_ids)
        batch.references = references if self.exact_answers else None
        batch.skipped = dict(skipped)
        if others and None not in others:
            batch.partners = collate(others, pad_ids=self.aligner.pad_ids)
        return batch

    def check(self, examples: Iterable[Example]) -> None:
        """Raises UserError if none of these examples, the shortest that there are, can be used."""
        reason = None
        for example in examples:
            try:
                num_tokens = self._read(example)[-1]
            except UserError as error:
                reason = reason or f"no example can be read. {example.source}: {error}"
                continue
            if num_tokens <= self.max_length:
                return
            reason = reason or (
                f"data.max_length is {self.max_length}, but even the shortest examples are longer "
                f"({example.source} has {num_tokens} tokens): raise it, or shorten the data."
            )
        if reason:
            raise UserError(reason)

    def _first_readable(self, examples: Iterable[Example]) -> AlignedPrompt | None:
        for example in examples:
            with suppress(UserError):
                prompt = self.aligner.prompt(example.prompt)
                if max(len(prompt.receiver_ids), *map(len, prompt.sharer_ids)) <= self.max_length:
                    return prompt
        return None

    def _read(self, example: Example) -> tuple[AlignedPrompt, list[int], int]:
        """Prompt and response, and how many tokens they have for the model that needs most."""
        prompt = self.aligner.prompt(example.prompt)
        response = self.aligner.response_ids(example.messages, prompt)
        return prompt, response, max(len(prompt.receiver_ids) + len(response), *map(len, prompt.sharer_ids))
