"""The contexts of the harness, which are texts, as conversations that both models read.

A context is the user's message. With `--apply_chat_template` the harness makes conversations (exemplars as
turns, a system prompt, a response's first words), but its tasks hand texts on: there the conversation travels
as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from c2c_lightning.models import AlignedPrompt, Aligner, Message
from c2c_lightning.models.alignment import MARK

BEGINNING = '{"c2c_messages": '


def to_context(messages: list[Message]) -> str:
    """A conversation as a context; `conversation` reads it again."""
    return BEGINNING + json.dumps(messages, ensure_ascii=False) + "}"


def conversation(context: str) -> tuple[list[Message], str]:
    """The messages up to the response, and the response's first words if the task gives them."""
    if not context.startswith(BEGINNING):
        return [{"role": "user", "content": context}], ""
    (messages,) = json.loads(context).values()
    if messages[-1]["role"] != "assistant":
        return messages, ""
    return messages[:-1], messages[-1]["content"]


@dataclass(frozen=True)
class ReadPrompt:
    """A context as the receiver reads it.

    Attributes:
        aligner: of receiver and sharers.
        prompt: the conversation up to the response.
        lead: what the template puts between the prompt and a response, such as Llama 2's space.
        first_words: of the response; empty if the task does not give them.
    """

    aligner: Aligner
    prompt: AlignedPrompt
    lead: str
    first_words: str

    @classmethod
    def read(cls, context: str, aligner: Aligner) -> ReadPrompt:
        messages, first_words = conversation(context)
        prompt, mark = aligner.prompt(messages), MARK.format(0)
        finished = [*messages, {"role": "assistant", "content": mark}]
        full = aligner.render(aligner.receiver, finished, add_generation_prompt=False)
        lead = full[len(prompt.text) :].partition(mark)[0] if full.startswith(prompt.text) else ""
        return cls(aligner, prompt, lead, first_words)

    @property
    def first_ids(self) -> list[int]:
        """Ids of the response's first words."""
        return self._response_ids(self.first_words) if self.first_words else []

    def continued(self, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of the response that begins with a continuation: those that are given, and those that it adds.

        A continuation is not a whole response, so there is no end of turn. Where the given words and the
        continuation merge in a token, that token is added.
        """
        if not self.first_words:
            # Between prompt and response stands the template, not the space that joins them in a text.
            continuation = continuation.lstrip() or continuation
        given, whole = self._response_ids(self.first_words), self._response_ids(self.first_words + continuation)
        num_given = (*(a == b for a, b in zip(given, whole)), False).index(False)
        return whole[:num_given], whole[num_given:]

    def _response_ids(self, said: str) -> list[int]:
        return self.aligner.ids_after(self.prompt, self.lead + said)[0]
