"""Ways to answer: each model alone, routing, and C2C."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor
from transformers import BatchEncoding, DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.answers import Answer, AnswerFile
from c2c_lightning.evaluation.asking.decoding import Continuation, Prefill, Response, beginnings, decode, likelihoods
from c2c_lightning.evaluation.asking.questions import Questions, StageClock
from c2c_lightning.evaluation.benchmarks import Benchmark, Item
from c2c_lightning.formats.config import located, make_fusers
from c2c_lightning.formats.fuser_folder import read_fuser
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import Prefix
from c2c_lightning.models import FrozenModels, Message, Reading
from c2c_lightning.models.batch import pad
from c2c_lightning.models.cache import branch, prefill
from c2c_lightning.models.private_text import PRIVATE, reads

T = TypeVar("T")
Answers = Mapping[str, Sequence[Answer]]  # by method


class Method(ABC):
    """A way to answer a benchmark's questions."""

    name: str  # short, for files and metrics; unique among the methods of an evaluation
    description: str  # what it does, in one sentence that begins in lower case
    control: ClassVar[bool] = False  # it is there to keep C2C honest, and reported beside the other controls
    generic: ClassVar[bool] = False  # it is a control that knows nothing of the question from the sharer
    needs_choices: ClassVar[bool] = False  # it says nothing about open questions
    needs_others: ClassVar[bool] = False  # it takes something of the benchmark's other questions
    needs_fusers: ClassVar[bool] = False  # it changes something of what is fused
    needs_texts: ClassVar[bool] = False  # it is about texts that the sharer alone reads

    def why_not(self, benchmark: Benchmark) -> str | None:
        """Why it says nothing about this benchmark; None if it does."""
        if self.needs_texts and benchmark.context != "sharer":
            return "the sharer reads no texts alone"
        if self.needs_choices and (benchmark.by_likelihood or not benchmark.has_choices):
            return "the questions have no lettered choices"
        if self.needs_others and len(benchmark.items()) < 2:
            return "the benchmark has one question only"
        return None

    def check(self, models: FrozenModels) -> None:  # noqa: B027
        """Raises UserError if it cannot be put to these models; called before anything is written."""


@dataclass
class Asking:
    """Questions that are put to a method, and all that it may answer them by."""

    questions: Questions  # they keep what several methods need
    reading: Reading  # of the questions, the same for all methods
    fusers: Fusers  # between the reading's models
    clock: StageClock  # times the stages

    @classmethod
    def of(cls, communicator: Communicator, questions: Questions) -> Asking:
        reading = questions.read(communicator.models).with_mapper(communicator.fusers.mapper)
        return cls(questions, reading, communicator.fusers, StageClock(communicator.models.receiver.device))

    @property
    def models(self) -> FrozenModels:
        return self.reading.models

    def once(self, stage: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made when the first method asks for it; see `Questions.once`."""
        return self.questions.once(self.clock, stage, key, make)

    def receiver_cache(self) -> DynamicCache:
        """The receiver's own cache of all prompt tokens but the last, to be written to."""
        return branch(self.once("receiver prefill", self.reading, self.reading.receiver_cache))

    def sharer_cache(self, sharer: int) -> DynamicCache:
        """A sharer's own cache of all tokens of its prompts, to be written to."""
        return branch(self.once("sharer prefill", (self.reading, sharer), partial(self.reading.sharer_cache, sharer)))

    def opposite_stacks(self) -> dict[int, Tensor]:
        """The stacks of the sharers with an open gate, as `Fusers.sharer_stacks` gives them."""
        stacks = {}
        for i in self.fusers.open_sharers():
            self.sharer_cache(i)
            layers = tuple(self.fusers.layer_maps[i].values())
            opposite = partial(self.reading.sharer_stack, i, layers)
            stacks[i] = self.once("sharer prefill", (self.reading, i, layers), opposite)
        return stacks

    def read_prompts(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        chats: Callable[[], Sequence[list[Message]]],
        stage: str,
        key: Hashable,
        tokenization: str = "tokenization",
    ) -> Prefill:
        """Prefills a model with chats, one for each question, that it alone reads.

        The prefill is timed as `stage`, and what precedes it as `tokenization`. The `key` is the same for methods
        that have the model read the same texts for a question.
        """

        def tokenize() -> BatchEncoding:
            texts = [self.reading.models.aligner.render(tokenizer, chat) for chat in chats()]
            padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
            return tokenizer(texts, add_special_tokens=False, **padded).to(model.device)

        encoded = self.once(tokenization, (key, "tokens"), tokenize)
        ids, mask = encoded.input_ids, encoded.attention_mask
        cache = self.once(stage, key, partial(prefill, model, ids[:, :-1], mask[:, :-1]))
        return Prefill(model, tokenizer, ids, mask, branch(cache))


class Answering(Method):
    """A method that asks the models. Subclasses state how the cache comes about."""

    @abstractmethod
    def prefill(self, asking: Asking) -> Prefill:
        """Everything up to the response."""

    @torch.no_grad()
    def respond(self, asking: Asking) -> tuple[Prefill, list[Response]]:
        """The responses to some questions together, not graded yet: all that takes a model."""
        items, benchmark = asking.questions.items, asking.questions.benchmark
        start = self.prefill(asking)
        if benchmark.by_likelihood:
            return start, rank(start, asking)
        begin(start, asking)
        limits = [1 if benchmark.answer_mode == "logits" else benchmark.max_new_tokens_of(item) for item in items]
        letters = max((item.letters for item in items), key=len)
        return start, decode(start, limits, asking.clock, letters, [benchmark.stops(item) for item in items])

    def answer(self, asking: Asking) -> list[Answer]:
        """Answers some questions together."""
        said, of = self.ask(asking), asking.questions
        return [self.graded(answer, of.benchmark, item, of.seed) for answer, item in zip(said, of.items)]

    def ask(self, asking: Asking) -> list[Answer]:
        """The responses with what they cost, not graded yet."""
        items, by_letter = asking.questions.items, asking.questions.benchmark.answer_mode == "logits"
        start, responses = self.respond(asking)
        seconds = asking.clock.seconds()
        seconds.pop("tokenization", None)  # it is done once for all methods that read the same prompts
        decode_seconds = seconds.pop("decode") / len(items)
        nothing = [0] * len(items)
        is_receiver = start.model is asking.reading.models.receiver
        answers = []
        for i, (item, said) in enumerate(zip(items, responses)):
            letters = None if said.letters is None else said.letters[: len(item.letters)]
            on_the_way = (start.sharer_tokens or nothing)[i]
            answer = Answer(
                id=item.id,
                response=item.letters[letters.index(max(letters))] if by_letter else said.text,
                confidence=said.confidence,
                letters=letters,
                choices=said.choices,
                margin=said.margin,
                truncated=said.truncated and not by_letter,
                prefill_seconds=sum(seconds.values()) / len(items),
                decode_seconds=decode_seconds,
                receiver_tokens=said.tokens if is_receiver else 0,
                sharer_tokens=on_the_way + (0 if is_receiver else said.tokens),
                handed_over=(start.handed_over or nothing)[i],
                message=start.messages[i] if start.messages else "",
            )
            answers.append(answer)
        return answers

    def resume(self, folder: Path, benchmark: Benchmark, seed: int) -> dict[str, Answer]:
        """Its answers that an evaluation's folder has, as today's grader scores them; see `AnswerFile.resume`."""
        grade = partial(self.graded, benchmark=benchmark, seed=seed)
        return AnswerFile(folder, benchmark.name, self.name).resume(benchmark, grade)

    def graded(self, answer: Answer, benchmark: Benchmark, item: Item, seed: int) -> Answer:
        """An answer with what is extracted from its response, and the score of that; no model is asked."""
        if answer.choices is None:
            grade = benchmark.grade(item, answer.response)
        else:
            grade = benchmark.grade_choices(item, answer.choices)
        return replace(answer, extracted=grade.extracted, score=grade.score, metrics=dict(grade.metrics))


class Receiver(Answering):
    """The receiver reads the question and answers it: what communication has to improve on."""

    name = "receiver"
    description = "the receiver alone"

    def prefill(self, asking: Asking) -> Prefill:
        if asking.reading.batch.private is not None:
            batch = asking.reading.batch.without_texts()
            asking = replace(asking, reading=asking.once("tokenization", "untold", partial(asking.models.read, batch)))
        return of_receiver(asking.reading, asking.receiver_cache())


class ReadsIt(Answering):
    """The receiver reads itself what otherwise the sharer alone reads: what handing over can at best come to.

    Training also teaches the form of an answer. Behind a prefix that was trained with the mapper's data, losses and
    steps, the receiver has been taught that too: `reads_it_trained`, the fair skyline for a trained mapper.

    Args:
        prefix: a run that trained `mapper.Prefix`, or its fuser's folder; None for the receiver as it is.
    """

    name = "reads_it"
    description = "the receiver, which reads the text itself"
    needs_texts = True

    def __init__(self, prefix: str | None = None):
        self.prefix, self.mapper = prefix, None
        if prefix is not None:
            self.name = "reads_it_trained"
            self.description = "the receiver, which reads the text itself behind a trained prefix"

    def check(self, models: FrozenModels) -> None:
        if self.prefix is not None:
            self.mapper = read_prefix(self.prefix, models)

    def prefill(self, asking: Asking) -> Prefill:
        if self.mapper is not None:
            with asking.clock("tokenization"):
                reading = asking.reading.with_mapper(self.mapper)
            with asking.clock("receiver prefill"):
                return of_receiver(reading, reading.receiver_cache())
        batch = asking.reading.batch.with_texts()
        asking = replace(asking, reading=asking.once("tokenization", "with texts", partial(asking.models.read, batch)))
        return of_receiver(asking.reading, asking.receiver_cache())


def read_prefix(name: str, models: FrozenModels) -> Prefix:
    """A trained prefix for the receiver of these models.

    Raises:
        UserError: there is none, or it was trained for another receiver.
    """
    config, state = read_fuser(name)
    prefix = make_fusers(located(config, name), state, name).mapper
    if not isinstance(prefix, Prefix):
        raise UserError(f"prefix of ReadsIt is {name!r}, whose model.mapper is no Prefix: name a run where it is one.")
    own, trained = (Path(receiver).name for receiver in (models.receiver.name_or_path, config["receiver"]))
    if prefix.receiver != models.receiver_shape or own != trained:
        raise UserError(
            f"prefix of ReadsIt is {name!r}, which was trained for {trained}, and the receiver is {own}: train one for it."
        )
    return prefix.requires_grad_(False).to(models.receiver.device)


class Sharer(Answering):
    """A sharer reads the question in its own template and tokens, the first one with its private text, and answers it.

    Args:
        index: which one, of several.
    """

    def __init__(self, index: int = 0):
        self.index = index
        self.name = "sharer" if index == 0 else f"sharer_{index}"
        self.description = "the sharer alone" if index == 0 else f"sharer {index} alone"

    def check(self, models: FrozenModels) -> None:
        sharer_at(models, self.index)

    def prefill(self, asking: Asking) -> Prefill:
        reading, questions = asking.reading, asking.questions
        model, tokenizer = sharer_at(reading.models, self.index)
        tells = self.index == 0 and reading.batch.private is not None  # what is fused is of prompts without the text
        # Of published alignment, what the reading has made it read is not its own text.
        if tells or reading.models.aligner.alignment != "spans":
            key = ("own text", self.index)

            def chats() -> list[list[Message]]:
                return [reads(chat, PRIVATE) if tells else chat for chat in questions.messages()]

            return asking.read_prompts(model, tokenizer, chats, "sharer prefill", key)
        prompt, cache = reading.batch.sharers[self.index], asking.sharer_cache(self.index)
        cache.crop(-1)  # the response begins with reading the last token
        return Prefill(model, tokenizer, prompt.ids, prompt.mask, cache)


class C2C(Answering):
    """What the fuser was made for. Controls differ from it in one of its three steps."""

    name = "c2c"
    description = "the receiver on its cache, fused with the sharer's"

    def prefill(self, asking: Asking) -> Prefill:
        if asking.reading.batch.private is None:
            asking.receiver_cache()
        with asking.clock("tokenization"):
            asking = replace(asking, reading=self.heard(asking))
        if not len(asking.fusers):
            with asking.clock("receiver prefill"):
                cache = asking.reading.receiver_cache()
            return of_receiver(asking.reading, cache, cache_bytes(asking.reading, asking.fusers, ()))
        stacks = self.sharer_stacks(asking)
        with asking.clock("fusion"):
            fused = self.fused_stack(asking, stacks)
        cache = asking.reading.cache_with(asking.fusers.fused_layers, fused)
        return of_receiver(asking.reading, cache, cache_bytes(asking.reading, asking.fusers, stacks))

    def heard(self, asking: Asking) -> Reading:
        """What the receiver reads, with what the sharers read."""
        return asking.reading

    def sharer_stacks(self, asking: Asking) -> dict[int, Tensor]:
        """The sharers' stacks that the fusers see."""
        return asking.opposite_stacks()

    def fused_stack(self, asking: Asking, stacks: dict[int, Tensor]) -> Tensor:
        """The receiver's stack (2, L, B, H, N, D) of the fused layers that the response goes on from."""
        return asking.fusers.fused_stack(asking.reading, stacks)


class Derived(Method):
    """A method that is made of other methods' answers, and asks no model."""

    needs: tuple[str, ...]  # names of those methods

    @abstractmethod
    def derive(self, benchmark: Benchmark, items: Sequence[Item], answers: Answers) -> list[Answer]:
        """One answer for each item, from the `needs` methods' answers to the same items in the same order."""


class Routing(Derived):
    """The sharer answers the share of the questions on which it is most confident beyond the receiver.

    Confidence is the mean log-probability of a model's own response, so both are asked everything; a
    cheaper router can only know less. The published baseline gives the strong model half of the questions.

    Args:
        budget: share of the questions that the sharer answers.
    """

    name = "routing"
    needs = ("receiver", "sharer")

    def __init__(self, budget: float = 0.5):
        if not 0 <= budget <= 1:
            raise UserError(f"budget of Routing is {budget}: give the share of the questions, in [0, 1].")
        self.budget = budget
        self.description = f"the sharer answers the {budget:.0%} on which it is most confident beyond the receiver"

    def derive(self, benchmark: Benchmark, items: Sequence[Item], answers: Answers) -> list[Answer]:
        receiver, sharer = (answers[name] for name in self.needs)
        lead = np.array([s.confidence - r.confidence for r, s in zip(receiver, sharer)])
        chosen = set(np.argsort(-lead, kind="stable")[: round(self.budget * len(items))].tolist())
        return [both_asked(receiver[i], sharer[i], i in chosen) for i in range(len(items))]


class OracleRouting(Derived):
    """Each question goes to a model that is right, if there is one: no router can be better."""

    name = "oracle_routing"
    description = "for every question the better of the two models' answers: the upper bound of any routing"
    needs = ("receiver", "sharer")

    def derive(self, benchmark: Benchmark, items: Sequence[Item], answers: Answers) -> list[Answer]:
        pairs = zip(*(answers[name] for name in self.needs))
        return [both_asked(receiver, sharer, sharer.score > receiver.score) for receiver, sharer in pairs]


def both_asked(receiver: Answer, sharer: Answer, by_sharer: bool) -> Answer:
    """One of two answers, at the cost of both: confidence is only known once a model has answered."""
    return replace(
        sharer if by_sharer else receiver,
        prefill_seconds=receiver.prefill_seconds + sharer.prefill_seconds,
        decode_seconds=receiver.decode_seconds + sharer.decode_seconds,
        receiver_tokens=receiver.receiver_tokens,
        sharer_tokens=sharer.sharer_tokens,
    )


def rank(start: Prefill, asking: Asking) -> list[Response]:
    """The likeliest choice of each question; confidence is its log-probability among the choices."""
    items, benchmark, aligner = asking.questions.items, asking.questions.benchmark, asking.reading.models.aligner

    def tokenize() -> list[list[Continuation]]:
        continued = []
        for item in items:
            begun = beginnings(aligner, start.tokenizer, benchmark.messages(item))
            continued.append([begun(benchmark.first_words(item), text) for text in benchmark.continuations(item)])
        return continued

    continued = asking.once("tokenization", ("choices", start.tokenizer), tokenize)
    choices = [[value for value, _ in each] for each in likelihoods(start, continued, asking.clock)]
    return [
        Response(item.choices[int(np.argmax(each))], 0, False, float(log_softmax(each).max()), choices=each)
        for item, each in zip(items, choices)
    ]


def begin(start: Prefill, asking: Asking) -> None:
    """Adds the first words that the benchmark gives to the prompts that are still to be read."""
    items, benchmark, aligner = asking.questions.items, asking.questions.benchmark, asking.reading.models.aligner
    words = [benchmark.first_words(item) for item in items]
    if not any(words):
        return
    messages = map(benchmark.messages, items)
    given = [beginnings(aligner, start.tokenizer, chat)(first, "")[0] for chat, first in zip(messages, words)]
    # On the left, so that all end together; what is masked in the middle of a prompt is not attended to.
    ids, mask = (each.to(start.ids.device) for each in pad(given, start.tokenizer.pad_token_id, left=True))
    if start.position_ids is not None:
        start.position_ids = torch.cat([start.position_ids, start.position_ids[:, -1:] + mask.cumsum(-1)], dim=1)
    start.ids, start.mask = torch.cat([start.ids, ids], dim=1), torch.cat([start.mask, mask], dim=1)


def of_receiver(reading: Reading, cache: DynamicCache, handed_over: Sequence[int] = ()) -> Prefill:
    """The receiver's prefill of a reading; `handed_over` are bytes for each question."""
    models, batch = reading.models, reading.batch
    positions = None if batch.private is None else batch.positions(batch.prompt_mask)
    prompts = models.receiver, models.aligner.receiver, batch.prompt_ids, batch.prompt_mask
    return Prefill(*prompts, cache, positions, [*handed_over])


def cache_bytes(reading: Reading, fusers: Fusers, sharers: Iterable[int]) -> list[int]:
    """For each question the bytes that cross over.

    Of these sharers' caches the open layers, with all of a sharer's tokens; of a private text what fills its slots, or
    what it was packed into.
    """
    total, text = [0] * len(reading.batch), reading.batch.private
    if text is not None:
        shape, size = reading.models.receiver_shape, reading.models.receiver.dtype.itemsize
        per_slot = 2 * shape.num_layers * shape.features * size
        total = [n * per_slot if packed is None else packed for n, packed in zip(text.numbers.tolist(), text.num_bytes)]
    for i in sharers:
        fuser, sharer = fusers[i], reading.models.sharers[i]
        per_token = len(fuser.gate.active()) * fuser.sharer.features * sharer.dtype.itemsize
        total = [t + n * per_token for t, n in zip(total, reading.batch.sharers[i].mask.sum(1).tolist())]
    return total


def sharer_at(models: FrozenModels, index: int) -> tuple[PreTrainedModel, Tokenizer]:
    """A sharer and its tokenizer; a UserError if there is none of this index."""
    number = len(models.sharers)
    if not 0 <= index < number:
        raise UserError(f"a method names sharer {index}, but the fuser has {number}: give 0 to {number - 1}.")
    return models.sharers[index], models.aligner.sharers[index]
