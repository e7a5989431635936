"""Other questions of a validation set, whose caches the control `wrong_question` fuses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from c2c_lightning.data.records import Example

# Shorter sentences, such as "Answer in one word", do not show that two prompts share a passage.
SENTENCE = 20


class Partners:
    """For every example of a set others that know nothing of its answer.

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
        self.records, prompts = [], []
        for example in examples:
            self.records.append(example.source)
            prompts.append("\n".join(message["content"] for message in example.prompt))
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
