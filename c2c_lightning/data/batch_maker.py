"""Examples -> tokens, aligned between the models -> a padded batch, with other questions for the control."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from c2c_lightning.data.records import Example, MalformedTally
from c2c_lightning.errors import UserError
from c2c_lightning.models import AlignedPrompt, Aligner, Batch, Message, collate
from c2c_lightning.models.private_text import PRIVATE, reads, reads_all
from c2c_lightning.models.rendering import TemplateRunsOn

log = logging.getLogger(__name__)

# Shorter sentences, such as "Answer in one word", do not show that two prompts share a passage.
SENTENCE = 20


class TooLong(UserError):
    """Prompt and response have more tokens than `data.max_length`."""


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
        self.told = False  # whether there was a text that the sharer alone reads

    def __call__(self, examples: Sequence[Example], partners: Sequence[Iterable[Example]] | None = None) -> Batch:
        """A batch of examples.

        Args:
            examples: to tokenize.
            partners: for each of them other questions, the best first; see `Batch.partners`.
        """
        read, references, others = [], [], []
        skipped: Counter[str] = Counter()
        for i, example in enumerate(examples):
            self.refused.seen += 1
            try:
                read.append(self._read(example))
            except TooLong as reason:
                skipped["too_long"] += 1
                log.info("left out %s: %s", example.source, reason)
                continue
            except UserError as reason:  # one template may refuse what another takes
                skipped["refused"] += 1
                self.refused.skip(example.source, str(reason))
                continue
            references.append(example.response)
            if partners is not None:
                others.append(self._first_readable(partners[i], example))
        if not read:
            # A rank that has nothing to learn from must take part in the step all the same.
            nothing = self.aligner.prompt([{"role": "user", "content": "-", PRIVATE: "-" if self.told else None}])
            read, references = [(nothing, [])], [""]
            others = [] if partners is None else [(nothing, nothing)]
        prompts, responses = zip(*read)
        batch = collate(prompts, responses, self.aligner.pad_ids)
        batch.references = references if self.exact_answers else None
        if with_fewer_turns := sum(prompt.merged is not None for prompt in prompts):
            skipped["merged"] = with_fewer_turns
        batch.skipped = dict(skipped)
        if others and None not in others:
            batch.partners, fused = (collate(prompts, pad_ids=self.aligner.pad_ids) for prompts in zip(*others))
            if batch.partners.private is not None:
                batch.partners.partners = fused
        return batch

    def check(self, examples: Iterable[Example]) -> None:
        """Raises UserError if none of these examples, which have the shortest among them, can be used."""
        first = None
        for example in examples:
            try:
                self._read(example)
                return
            except UserError as error:
                first = first or UserError(f"no example can be used, not even the shortest. {example.source}: {error}")
        if first:
            raise first

    def _first_readable(
        self, examples: Iterable[Example], asked: Example
    ) -> tuple[AlignedPrompt, AlignedPrompt] | None:
        """What is asked with the private text of another question, and that question: the same without such texts."""
        for example in examples:
            told = told_otherwise(asked.prompt, example.prompt)
            if told == asked.prompt or (told is None and reads(asked.prompt, PRIVATE) != reads(asked.prompt)):
                continue  # it has no other text to tell
            with suppress(UserError):
                other = self.aligner.prompt(reads(example.prompt))
                prompt = self.aligner.prompt(told) if told else other
                self._check_length(prompt)
                return prompt, other
        return None

    def _read(self, example: Example) -> tuple[AlignedPrompt, list[int]]:
        try:
            prompt = self.aligner.prompt(example.prompt)
            response = self.aligner.response_ids(example.messages, prompt)
        except TemplateRunsOn as error:
            message = f"{example.source}: {error}"
            raise TemplateRunsOn(message) from UserError(message)
        self._check_length(prompt, response)
        self.told |= prompt.private is not None
        return prompt, response

    def _check_length(self, prompt: AlignedPrompt, response: Sequence[int] = ()) -> None:
        text = [] if prompt.private is None else [prompt.private.ids, prompt.private.asked_ids]
        own = max(len(prompt.receiver_ids), len(prompt.private.read_ids) if prompt.private else 0)
        tokens = max(own + len(response), *map(len, [*prompt.sharer_ids, *text]))
        if tokens > self.max_length:
            raise TooLong(
                f"it has {tokens} tokens, but data.max_length is {self.max_length}: raise it, or shorten the data."
            )


def told_otherwise(messages: list[Message], other: list[Message]) -> list[Message] | None:
    """A conversation with the private text of another one; None if it has none."""
    text = next((message[PRIVATE] for message in other if message.get(PRIVATE)), None)
    if text is None or not any(message.get(PRIVATE) for message in messages):
        return None
    return [{**message, PRIVATE: text} if message.get(PRIVATE) else message for message in messages]


class Partners:
    """For every example of a set others that know nothing of its answer, whose caches `wrong_question` fuses.

    A partner comes from another record and has another prompt. Prompts that have a sentence in common are avoided
    where the set has others, as they probably ask about the same passage; a sentence of more than half of the set is
    an instruction and does not count.

    Args:
        examples: the set.
        seed: of the random cycle through it, in which partners are looked for.
    """

    def __init__(self, examples: Sequence[Example], seed: int = 0):
        self.examples = examples
        self.cycle = np.random.default_rng(seed).permutation(len(examples))
        self.place_in_cycle = np.argsort(self.cycle)
        self.records = [example.source for example in examples]
        prompts = ["\n".join(message["content"] for message in reads_all(e.prompt)) for e in examples]
        self.prompts = [hash(prompt) for prompt in prompts]
        sentences = [_sentences(prompt) for prompt in prompts]
        count = Counter(sentence for of_one in sentences for sentence in of_one)
        self.sentences = [{s for s in of_one if count[s] <= len(examples) / 2} for of_one in sentences]

    def of(self, i: int) -> Iterator[Example]:
        """Partners of example i, the best first; the caller takes the first one that the models can read."""
        similar = []
        for other in np.roll(self.cycle, -1 - self.place_in_cycle[i])[:-1]:
            if self.records[other] == self.records[i] or self.prompts[other] == self.prompts[i]:
                continue
            if self.sentences[other].isdisjoint(self.sentences[i]):
                yield self.examples[int(other)]
            else:
                similar.append(int(other))
        yield from (self.examples[other] for other in similar)


def _sentences(prompt: str) -> set[int]:
    return {hash(s.strip()) for s in re.split(r"[\n.!?。！？]", prompt) if len(s.strip()) >= SENTENCE}
