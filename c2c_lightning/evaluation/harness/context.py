"""The contexts of the harness, which are texts, as conversations that both models read.

A context is the user's message. With `--apply_chat_template` the harness makes conversations (few-shot
examples as turns, a system prompt, an answer's first words), but its tasks hand texts on: there the
conversation travels as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from c2c_lightning.communication import Aligner, Message
from c2c_lightning.communication.alignment import MARK

BEGINNING = '{"c2c_messages": '


def to_context(messages: list[Message]) -> str:
    """A conversation as a context; `conversation` reads it again."""
    return BEGINNING + json.dumps(messages, ensure_ascii=False) + "}"


def conversation(context: str) -> tuple[list[Message], str]:
    """The messages up to the answer, and the answer's first words if the task gives them."""
    if not context.startswith(BEGINNING):
        return [{"role": "user", "content": context}], ""
    (messages,) = json.loads(context).values()
    if messages[-1]["role"] != "assistant":
        return messages, ""
    return messages[:-1], messages[-1]["content"]


@dataclass(frozen=True)
class Prompt:
    """A context as the receiver reads it.

    Attributes:
        text: the prompt, rendered by the receiver's template.
        ids: the prompt's ids.
        begun: ids of the answer's first words.
    """

    aligner: Aligner
    text: str
    ids: list[int]
    lead: str  # what the template puts between the prompt and an answer, such as Llama 2's space
    first_words: str

    @classmethod
    def read(cls, context: str, aligner: Aligner) -> Prompt:
        messages, first_words = conversation(context)
        prompt, mark = aligner.prompt(messages), MARK.format(0)
        answered = [*messages, {"role": "assistant", "content": mark}]
        full = aligner.render(aligner.receiver, answered, add_generation_prompt=False)
        lead = full[len(prompt.text) :].partition(mark)[0] if full.startswith(prompt.text) else ""
        return cls(aligner, prompt.text, prompt.receiver_ids, lead, first_words)

    @property
    def begun(self) -> list[int]:
        return self._response_ids(self.first_words) if self.first_words else []

    def continued(self, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of the answer that begins with a continuation: those that are given, and those that it adds.

        A continuation is not a whole answer, so there is no end of turn. Where the given words and the
        continuation merge in a token, that token is added.
        """
        if not self.first_words:
            # Between a question and its answer stands the template, not the space that joins them in a text.
            continuation = continuation.lstrip() or continuation
        given, whole = self._response_ids(self.first_words), self._response_ids(self.first_words + continuation)
        num_given = (*(a == b for a, b in zip(given, whole)), False).index(False)
        return whole[:num_given], whole[num_given:]

    def _response_ids(self, said: str) -> list[int]:
        """Ids of the beginning of an answer, cut as `Aligner.response_ids` cuts those of a whole one."""
        said, tokenizer = self.lead + said, self.aligner.receiver
        ids = tokenizer(self.text + said, add_special_tokens=False).input_ids
        if ids[: len(self.ids)] == self.ids:
            return ids[len(self.ids) :]
        return tokenizer(said, add_special_tokens=False).input_ids
