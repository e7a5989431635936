"""Text-to-text (T2T): the sharer writes a message, the receiver reads it. The baseline to beat."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import partial

from c2c_lightning.errors import UserError, check_at_least
from c2c_lightning.evaluation.asking.decoding import Prefill, Response, decode
from c2c_lightning.evaluation.asking.methods import C2C, Answering, Asking, sharer_at
from c2c_lightning.evaluation.asking.questions import Questions, StageClock
from c2c_lightning.evaluation.benchmarks.prompt import known_placeholders
from c2c_lightning.models import FrozenModels, Message
from c2c_lightning.models.cache import prefill

SHARER_PROMPT = (
    "Someone else has to answer the question below. Write one sentence of background knowledge that helps "
    "to answer it, and do not answer it yourself.\n\n{question}"
)
RECEIVER_PROMPT = "Background: {message}\n\n{prompt}"


class TextToText(Answering):
    """The sharer writes a message about the question; the receiver reads message and question.

    The defaults have the form that the paper describes: one sentence of background without the answer,
    at most 256 tokens (arXiv 2510.03215).

    Args:
        sharer_prompt: what the sharer is asked, with `{question}` (with its choices).
        receiver_prompt: what the receiver is asked, with `{message}` and `{prompt}`.
        max_message_tokens: tokens that the message may have.
        sharer: which sharer writes, of several.

    Raises:
        UserError: a prompt lacks its placeholder, or has a strange one.
    """

    name = "text_to_text"
    description = "the sharer writes a message, which the receiver reads before the question"

    def __init__(
        self,
        sharer_prompt: str = SHARER_PROMPT,
        receiver_prompt: str = RECEIVER_PROMPT,
        max_message_tokens: int = 256,
        sharer: int = 0,
    ):
        templates = {
            "sharer_prompt": (sharer_prompt, ["question"]),
            "receiver_prompt": (receiver_prompt, ["message", "prompt"]),
        }
        for key, (template, needed) in templates.items():
            lacking = set(needed) - {*known_placeholders(template, needed, f"{key} of {type(self).__name__}")}
            if lacking:
                raise UserError(f"{key} of {type(self).__name__} {template!r} lacks {{{min(lacking)}}}.")
        check_at_least(1, f"{{}} of {type(self).__name__}", max_message_tokens=max_message_tokens)
        self.sharer_prompt, self.receiver_prompt = sharer_prompt, receiver_prompt
        self.max_message_tokens, self.sharer = max_message_tokens, sharer

    def check(self, models: FrozenModels) -> None:
        sharer_at(models, self.sharer)

    def prefill(self, asking: Asking) -> Prefill:
        questions, written = asking.questions, self.write(asking)
        texts = [said.text for said in written]
        chats = []
        for (*before, last), text in zip(questions.messages(), texts):
            content = self.receiver_prompt.format(message=text, prompt=last["content"])
            chats.append([*before, {**last, "content": content}])
        start = self.read(asking, chats)
        more = start.handed_over or [0] * len(questions)
        start.handed_over = [len(text.encode()) + extra for text, extra in zip(texts, more)]
        start.sharer_tokens, start.messages = [said.tokens for said in written], texts
        return start

    def write(self, asking: Asking) -> list[Response]:
        """The sharer's messages."""
        model, tokenizer = sharer_at(asking.reading.models, self.sharer)
        questions, key = asking.questions, ("asked", self.sharer, self.sharer_prompt)

        def chats() -> list[list[Message]]:
            asked = [self.sharer_prompt.format(question=questions.benchmark.question_text(i)) for i in questions.items]
            return [[{"role": "user", "content": text}] for text in asked]

        start = asking.read_prompts(model, tokenizer, chats, "sharer prefill", key)
        limits = [self.max_message_tokens] * len(questions)
        # A clock of its own, since its first token is not the response's.
        decoding = partial(decode, start, limits, StageClock(model.device))
        return asking.once("sharer decode", (*key, self.max_message_tokens), decoding)

    def read(self, asking: Asking, chats: list[list[Message]]) -> Prefill:
        """Has the receiver read message and question."""
        models = asking.reading.models
        receiver, tokenizer = models.receiver, models.aligner.receiver
        return asking.read_prompts(receiver, tokenizer, lambda: chats, "receiver prefill", self.told, "text")

    @property
    def told(self) -> Hashable:
        """The same for methods whose receiver reads the same messages and questions."""
        return "told", self.sharer, self.sharer_prompt, self.max_message_tokens, self.receiver_prompt


class C2CAfterText(TextToText):
    """C2C after T2T: both models read the sharer's message and the question, and then their caches are fused.

    Takes the arguments of `TextToText`.
    """

    name = "c2c_after_text"
    description = "the sharer writes a message; then C2C on message and question"

    def read(self, asking: Asking, chats: list[list[Message]]) -> Prefill:
        models = asking.reading.models
        with asking.clock("text"):
            batch = models.collate(chats)
        ids, mask, prefilled = batch.prompt_ids[:, :-1], batch.prompt_mask[:, :-1], None
        if batch.private is None:  # with texts of the sharer's own no other method reads these prompts
            prefilled = asking.once("receiver prefill", self.told, partial(prefill, models.receiver, ids, mask))
        asked = asking.questions
        # No other method has the sharers read these prompts, so their caches need not be kept for any.
        unshared = Questions(asked.benchmark, asked.items, asked.partners, asked.seed)
        reading = models.read(batch, prefilled).with_mapper(asking.fusers.mapper)
        return C2C().prefill(replace(asking, questions=unshared, reading=reading))
