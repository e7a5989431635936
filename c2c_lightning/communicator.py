"""Frozen models and fusers as one model that answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DynamicCache
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError
from c2c_lightning.files import checked
from c2c_lightning.formats.config import located, make_fusers
from c2c_lightning.formats.fuser_folder import named, read_fuser, without_statistics, write_fuser_folder
from c2c_lightning.fuser import Fusers
from c2c_lightning.models import Batch, ChatConfig, FrozenModels, Message, Reading, load_aligner, load_models
from c2c_lightning.models.private_text import PRIVATE


class Said(TypedDict):
    role: str
    content: str


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
        reading = self.read(reading)
        return self.models.response_loss(self.prefill(reading, fuse), reading.batch)

    def prefill(self, reading: Reading | Batch, fuse: bool = True) -> DynamicCache:
        """The receiver's cache of all prompt tokens but the last, fused with the sharers' unless `fuse` is False."""
        reading = self.read(reading)
        return self.fusers.fuse(reading) if fuse else reading.receiver_cache()

    @torch.no_grad()
    def generate_ids(self, reading: Reading | Batch, fuse: bool = True, **generate_kwargs: Any) -> Any:
        """The receiver's own `generate` on the fused cache; see `FrozenModels.respond`."""
        reading = self.read(reading)
        return self.models.respond(self.prefill(reading, fuse), reading.batch, **generate_kwargs)

    def generate(
        self,
        messages: list[Message] | list[list[Message]],
        fuse: bool = True,
        context: str | list[str] | None = None,
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Answers one conversation, or a batch of them.

        Args:
            messages: chat messages (`role`, `content`), or a list of such conversations.
            fuse: False for the receiver alone, which knows nothing of `context`.
            context: a text that the first sharer alone reads, or one for each conversation; it belongs to the last turn.
            **generate_kwargs: anything that transformers' `generate` takes, if it works on a filled cache.

        Returns:
            The response as text; a list where a batch was given or several sequences asked for.
        """
        single = isinstance(messages, list) and bool(messages) and isinstance(messages[0], dict)
        conversations = [messages] if single else messages
        remedy = "Give chat messages, [{'role': 'user', 'content': ...}], or a list of such conversations."
        checked(conversations, Conversations, "what generate was given", remedy)
        texts = [context] * len(conversations) if isinstance(context, str) else context
        if texts is not None:
            if len(texts) != len(conversations):
                raise UserError(f"generate was given {len(texts)} contexts for {len(conversations)} conversations.")
            checked(list(texts), list[str | None], "contexts that generate was given", "Give a text, or one for each.")
            conversations = [[*turns[:-1], {**turns[-1], "private": text}] for turns, text in zip(conversations, texts)]
        if not fuse:
            conversations = [[{**message, PRIVATE: None} for message in turns] for turns in conversations]
        reading = self.read(conversations)
        out = self.generate_ids(reading, fuse, **generate_kwargs)
        ids = out if isinstance(out, Tensor) else out.sequences
        texts = self.models.decode(ids[:, reading.batch.prompt_ids.shape[1] :])
        return texts[0] if single and len(texts) == 1 else texts

    def read(self, batch: Reading | Batch | list[list[Message]]) -> Reading:
        """What the frozen models make of a batch, or of conversations; communicators of the same models share it."""
        if isinstance(batch, Reading):
            return batch
        return self.models.read(batch if isinstance(batch, Batch) else self.models.collate(batch))

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
            sharers: the same of all sharers.
            trust_remote_code: import a fuser class that is not one of this package, and so run its file.

        Raises:
            UserError: a part is missing, damaged, or does not fit the models.
        """
        name = named(name)
        config, state = read_fuser(name, receiver, sharers)
        config = located(config, name)
        fusers = make_fusers(config, state, name, trust_remote_code)  # refuses before models are read
        models = config["receiver"], config["sharers"]
        aligner = load_aligner(*models, config["alignment"], config["template_kwargs"], ChatConfig(**config["chat"]))
        return cls(FrozenModels(*load_models(*models, dtype), aligner), fusers).eval()
