"""Frozen models and fusers as one model that answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import AfterValidator, Field, InstanceOf
from torch import Tensor, nn
from transformers import DynamicCache
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError, check_at_least
from c2c_lightning.files import checked
from c2c_lightning.formats.cached import FORMAT, Cached, Maker, Makers, mapper_of, write_cache
from c2c_lightning.formats.config import located, make_fusers
from c2c_lightning.formats.fuser_folder import named, read_fuser, without_statistics, write_fuser_folder
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import Handed, Prefix
from c2c_lightning.mapper.handed import BITS, pack
from c2c_lightning.models import Batch, ChatConfig, FrozenModels, Message, Reading, load_aligner, load_models
from c2c_lightning.models.loading import longest
from c2c_lightning.models.private_text import PRIVATE


def _unicode(text: str) -> str:
    text.encode()  # half of a surrogate pair, which no tokenizer takes, raises a ValueError
    return text


Text = Annotated[str, AfterValidator(_unicode)]


class Said(TypedDict):
    role: str
    content: Text
    private: NotRequired[Text | InstanceOf[Handed] | None]
    receiver_only: NotRequired[Text | None]


Conversations = Annotated[list[Annotated[list[Said], Field(min_length=1)]], Field(min_length=1)]


class Communicator(nn.Module):
    """A receiver that answers on its own cache, fused with its sharers'.

    Args:
        models: receiver and sharers, frozen.
        fusers: one for each sharer.
    """

    def __init__(self, models: FrozenModels, fusers: Fusers):
        super().__init__()
        self.models, self.fusers = models, fusers
        self._made_with: Makers | None = None
        self._mapper: Maker | None = None  # the mapper's name and digest, where only the receiver was loaded

    def train(self, mode: bool = True) -> Communicator:
        self._made_with = None  # weights may be others now
        return super().train(mode)

    @classmethod
    def fresh(cls, models: FrozenModels, **fusers: Any) -> Communicator:
        """Puts untrained fusers between models; `fusers` are the keyword arguments of `Fusers`."""
        return cls(models, Fusers(models.receiver_shape, models.sharer_shapes, **fusers))

    def forward(self, reading: Reading | Batch, fuse: bool = True) -> tuple[Tensor, Tensor]:
        """Next-token loss on the responses.

        Args:
            reading: of prompts and responses, or the batch to read.
            fuse: False for the receiver alone.

        Returns:
            The summed cross-entropy in nats, and the number of supervised tokens that it is summed over.
        """
        reading = self.read(reading, fuse)
        return self.models.response_loss(self.prefill(reading, fuse), reading.batch)

    def prefill(self, reading: Reading | Batch, fuse: bool = True) -> DynamicCache:
        """The receiver's cache of all prompt tokens but the last, fused with the sharers' unless `fuse` is False."""
        reading = self.read(reading, fuse)
        return self.fusers.fuse(reading) if fuse else reading.receiver_cache()

    @torch.no_grad()
    def generate_ids(self, reading: Reading | Batch, fuse: bool = True, **generate_kwargs: Any) -> Any:
        """The receiver's own `generate` on the fused cache; see `FrozenModels.respond`."""
        reading = self.read(reading, fuse)
        return self.models.respond(self.prefill(reading, fuse), reading.batch, **generate_kwargs)

    def generate(
        self,
        messages: list[Message] | list[list[Message]],
        fuse: bool = True,
        context: str | Cached | list[str | Cached | None] | None = None,
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Answers one conversation, or a batch of them.

        Args:
            messages: chat messages (`role`, `content`), or a list of such conversations.
            fuse: False for the receiver alone, which knows nothing of `context`.
            context: a text that the first sharer alone reads, or has read (`Cached`), or one for each conversation; it
                belongs to the last turn.
            **generate_kwargs: anything that transformers' `generate` takes, if it works on a filled cache.

        Returns:
            The response as text; a list where a batch was given or several sequences asked for.
        """
        single = isinstance(messages, list) and bool(messages) and isinstance(messages[0], dict)
        conversations = [messages] if single else messages
        remedy = "Give chat messages, [{'role': 'user', 'content': ...}], or a list of such conversations."
        checked(conversations, Conversations, "what generate was given", remedy)
        texts = [context] * len(conversations) if isinstance(context, str | Cached) else context
        if texts is not None:
            remedy = "Give a text or a Cached one, or one for each conversation."
            texts = checked(texts, list[Text | InstanceOf[Cached] | None], "contexts that generate was given", remedy)
            if len(texts) != len(conversations):
                raise UserError(f"generate was given {len(texts)} contexts for {len(conversations)} conversations.")
            if any(text is not None and turns[-1].get(PRIVATE) for turns, text in zip(conversations, texts)):
                raise UserError("generate was given a context for a message that has a private text: give one of them.")
            if fuse:
                texts = [text.handed(self.made_with()) if isinstance(text, Cached) else text for text in texts]
            conversations = [
                turns if text is None else [*turns[:-1], {**turns[-1], PRIVATE: text}]
                for turns, text in zip(conversations, texts)
            ]
        if not fuse:
            conversations = [[{**message, PRIVATE: None} for message in turns] for turns in conversations]
        batch = self.models.collate(conversations)
        self._check_room(batch)
        reading = self.read(batch, fuse)
        out = self.generate_ids(reading, fuse, **generate_kwargs)
        ids = out if isinstance(out, Tensor) else out.sequences
        texts = self.models.decode(ids[:, reading.batch.prompt_ids.shape[1] :])
        return texts[0] if single and len(texts) == 1 else texts

    @torch.no_grad()
    def save_text(self, text: str, path: str | Path, bits: int | None = None, keep: int | None = None) -> None:
        """Has the first sharer read a text, and writes what the mapper makes of it to a file, for `Cached`.

        Args:
            text: as it would be given to `generate` as context.
            path: of the file.
            bits: of a number: 32, 16, 8 or 4; None for those that the receiver works with, which changes no answer.
            keep: how many of the text's tokens to keep, those that matter most; None for all.

        Raises:
            UserError: there is no mapper, the text is empty or too long for the sharer, or the file cannot be written.
        """
        made_with, receiver = self.made_with(), self.models.receiver
        if not self.models.sharers:
            raise UserError("a sharer reads the text, and only the receiver is loaded: leave sharers out.")
        if bits not in (None, *BITS):
            raise UserError(f"bits is {bits!r}: give one of {', '.join(map(str, BITS))}.")
        check_at_least(1, keep=keep)
        if not checked(text, Text, f"the text for {path}").strip():
            raise UserError(f"the text for {path} is empty: give one that has something to hand over.")
        batch = self.models.collate([[{"role": "user", "content": "?", PRIVATE: text}]])
        self._check_room(batch)
        bits = 8 * receiver.dtype.itemsize if bits is None else bits
        mapped = self.read(batch).mapped.to(receiver.dtype).cpu()
        packed = pack(mapped, bits, keep)
        meta = {
            "format": FORMAT,
            "made_with": made_with,
            "text": hashlib.sha256(text.encode()).hexdigest(),
            "num_tokens": mapped.shape[2],
            "bits": bits,
            "shape": [*mapped.shape[:2], len(packed.get("kept", mapped[0, 0])), *mapped.shape[3:]],
        }
        write_cache(Path(path).expanduser(), packed, meta)

    def _check_room(self, batch: Batch) -> None:
        """Raises a UserError for private texts that are longer than the sharer, or the receiver behind them, can read."""
        if batch.private is None:
            return
        prompts = int(batch.positions(batch.prompt_mask).max()) + 1
        lengths = {"text": batch.private.ids.shape[1], "prompt with a slot for each token of the text": prompts}
        for (what, number), model in zip(lengths.items(), (*self.models.sharers[:1], self.models.receiver)):
            if number > (most := longest(model)):
                raise UserError(
                    f"the {what} has {number} tokens, and {model.name_or_path} reads at most {most}: give a shorter text, "
                    "or the parts of it one by one."
                )

    @property
    def hands_over(self) -> bool:
        """Whether there is a mapper that makes something of what a sharer has read."""
        return self.fusers.mapper is not None and not isinstance(self.fusers.mapper, Prefix)

    def made_with(self) -> Makers:
        """Names and digests of the receiver, the first sharer if it is loaded, and the mapper.

        Raises:
            UserError: there is no mapper.
        """
        if self._mapper is None and not self.hands_over:
            which = " that hands a text over, but a Prefix" if self.fusers.mapper else ", so no text can be handed over"
            raise UserError(f"the fuser has no mapper{which}: train one with model.mapper.")
        if self._made_with is None:  # kept, since every byte of the models is read for it
            models = zip(("receiver", "sharer"), (self.models.receiver, *self.models.sharers))
            digests = {part: Maker(name=m.name_or_path, fingerprint=self.models.fingerprint(m)) for part, m in models}
            mapper = self._mapper or mapper_of(self.fusers.config(), self.fusers.state_dict())
            self._made_with = Makers(**digests, mapper=mapper)
        return self._made_with

    def read(self, batch: Reading | Batch | list[list[Message]], fuse: bool = True) -> Reading:
        """What the frozen models make of a batch, or of conversations; communicators of the same models share it.

        With `fuse`, the slots of private texts are filled by this communicator's mapper.
        """
        if not isinstance(batch, Reading):
            batch = self.models.read(batch if isinstance(batch, Batch) else self.models.collate(batch))
        return batch.with_mapper(self.fusers.mapper) if fuse else batch

    def config(self) -> dict[str, Any]:
        """What a saved fuser says of itself: the models it was trained between, and how."""
        return {**self.models.config(), **self.fusers.config()}

    def save_pretrained(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Saves the fusers, and the names of the models they were trained between.

        Args:
            folder: it is made.
            state: of the fusers, with whole tensors, where they are sharded; None for what they have.
        """
        state = self.fusers.state_dict() if state is None else state
        write_fuser_folder(Path(folder), self.config(), without_statistics(state))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: str = "auto",
        receiver: str | None = None,
        sharers: Sequence[str] | None = None,
        trust_remote_code: bool = False,
    ) -> Communicator:
        """Loads a fuser with its receiver and sharers, ready to answer.

        Args:
            name: a folder that `save_pretrained` wrote, the hub id of one, a run's folder, one of its checkpoints, or
                `last` for that of the newest run in runs/.
            dtype: of the frozen models; `auto` for the one they were saved in. Fusers stay in fp32.
            receiver: folder or hub id of the receiver, where it is no longer where the fuser says.
            sharers: the same of all sharers. An empty list for none: then only the receiver is loaded, which answers
                about `Cached` texts.
            trust_remote_code: import a fuser class that is not one of this package, and so run its file.

        Raises:
            UserError: a part is missing, damaged, or does not fit the models.
        """
        name, alone = named(name), sharers is not None and not len(sharers)
        config, state = read_fuser(name, receiver, None if alone else sharers)
        if alone:
            if config["fuser"] is not None or "mapper" not in config:
                raise UserError(f"sharers is [], but fuser {name!r} fuses what sharers read: leave sharers out.")
            config |= {"sharers": [], "chat": {**config["chat"], "sharers": None}}
        config = located(config, name)
        # What does not fit is refused before models are read.
        fusers = None if alone else make_fusers(config, state, name, trust_remote_code)
        models = config["receiver"], config["sharers"]
        aligner = load_aligner(*models, config["alignment"], config["template_kwargs"], ChatConfig(**config["chat"]))
        frozen = FrozenModels(*load_models(*models, dtype), aligner)
        loaded = cls(frozen, Fusers(frozen.receiver_shape, [], fuser=None) if alone else fusers).eval()
        loaded._mapper = mapper_of(config, state) if alone else None
        return loaded
