"""Text-to-text (T2T): the sharer writes a message, the receiver reads it. The baseline to beat."""

from __future__ import annotations

from dataclasses import dataclass

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.clock import StageClock
from c2c_lightning.evaluation.asking.decoding import Prefill, decode
from c2c_lightning.evaluation.asking.methods import Answering, cache_bytes, of_receiver, read_prompts, sharer_at
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.models import Message

SHARER_PROMPT = (
    "Someone else has to answer the question below. Write one sentence of background knowledge that helps "
    "to answer it, and do not answer it yourself.\n\n{question}"
)
RECEIVER_PROMPT = "Background: {message}\n\n{prompt}"


@dataclass
class Told:
    """What the sharer wrote, and the conversations that the receiver is to read."""

    conversations: list[list[Message]]
    messages: list[str]
    tokens: list[int]


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
        check_template("sharer_prompt", sharer_prompt, question="")
        check_template("receiver_prompt", receiver_prompt, message="", prompt="")
        if max_message_tokens < 1:
            raise UserError(f"max_message_tokens of {type(self).__name__} is {max_message_tokens}: give at least 1.")
        self.sharer_prompt, self.receiver_prompt = sharer_prompt, receiver_prompt
        self.max_message_tokens, self.sharer = max_message_tokens, sharer

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        told = self.tell(communicator, questions, clock)
        start = self.read(communicator, told.conversations, clock)
        more = start.handed_over or [0] * len(questions)
        start.handed_over = [len(message.encode()) + extra for message, extra in zip(told.messages, more)]
        start.sharer_tokens, start.messages = told.tokens, told.messages
        return start

    def read(self, communicator: Communicator, conversations: list[list[Message]], clock: StageClock) -> Prefill:
        """Has the receiver read message and question."""
        aligner = communicator.aligner
        with clock("text"):
            texts = [aligner.render(aligner.receiver, messages) for messages in conversations]
        return read_prompts(communicator.receiver, aligner.receiver, texts, clock, "receiver prefill", "text")

    def tell(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Told:
        """Has the sharer write its messages."""
        aligner, benchmark = communicator.aligner, questions.benchmark
        model, tokenizer = sharer_at(communicator, self.sharer)
        with clock("tokenization"):
            asked = [self.sharer_prompt.format(question=benchmark.question_text(item)) for item in questions.items]
            texts = [aligner.render(tokenizer, [{"role": "user", "content": text}]) for text in asked]
        start = read_prompts(model, tokenizer, texts, clock, "sharer prefill")
        # A clock of its own, since its first token is not the response's.
        writing = StageClock(model.device)
        with clock("sharer decode"):
            message = decode(start, [self.max_message_tokens] * len(texts), writing)
        conversations = []
        for item, text in zip(questions.items, message.responses):
            *before, last = benchmark.messages(item)
            content = self.receiver_prompt.format(message=text, prompt=last["content"])
            conversations.append([*before, {**last, "content": content}])
        return Told(conversations, message.responses, message.tokens)


def check_template(key: str, template: str, **placeholders: str) -> None:
    """Raises UserError unless a template has just these placeholders."""
    try:
        template.format(**placeholders)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in placeholders)
        raise UserError(f"{key} {template!r}: {error!s} is no placeholder of it; it may have {known}.") from error
    for name in placeholders:
        if f"{{{name}}}" not in template:
            raise UserError(f"{key} {template!r} lacks {{{name}}}.")


class C2CAfterText(TextToText):
    """Takes the arguments of `TextToText`."""

    name = "c2c_after_text"
    description = "the sharer writes a message; then C2C on message and question"

    def read(self, communicator: Communicator, conversations: list[list[Message]], clock: StageClock) -> Prefill:
        with clock("text"):
            batch = communicator.collate(conversations)
        with clock("receiver prefill"):
            cache = communicator.receiver_cache(batch)
        with clock("sharer prefill"):
            stacks = communicator.sharer_stacks(batch)
        with clock("fusion"):
            communicator.fuse(cache, stacks, batch)
        return of_receiver(communicator, batch, cache, cache_bytes(communicator, batch, stacks))
