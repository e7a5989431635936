"""Frozen LMs and their fusers as one model that answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from c2c_lightning.errors import UserError
from c2c_lightning.formats.fuser_folder import import_fuser, read_fuser, without_statistics, write_fuser_folder
from c2c_lightning.fuser import C2CFuser, Fuser, FuserFactory, Gate, GateConfig
from c2c_lightning.fuser.base import pick
from c2c_lightning.fuser.layer_map import LayerMap, Layers, map_layers
from c2c_lightning.fuser.together import Fusion, fuse_together
from c2c_lightning.models.alignment import Aligner, Alignment, Message
from c2c_lightning.models.batch import Batch, collate
from c2c_lightning.models.cache import logits_at, position_ids, read_stack, write_stack
from c2c_lightning.models.loading import kv_shape, load_models, load_tokenizer
from c2c_lightning.models.prompt_store import PromptStore
from c2c_lightning.models.reading import Reading

# What a model's own generation_config may set, and greedy decoding must not have.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


class Communicator(nn.Module):
    """A receiver, its sharers, and one fuser for each sharer.

    Args:
        receiver: the LM that answers; it is frozen.
        sharers: the LMs whose caches are handed over; they are frozen.
        aligner: reads conversations for these models.
        fuser: makes a fuser from (sharer shape, receiver shape, gate).
        layer_map: see `map_layers`.
        layers: see `map_layers`.
        gate: the layer-gating configuration, the same for every sharer.
        prompt_store: where what the frozen models make of prompts is kept; None to compute it every time.

    Raises:
        UserError: a model whose cache cannot be fused, or an impossible layer map or gate.
    """

    def __init__(
        self,
        receiver: PreTrainedModel,
        sharers: Sequence[PreTrainedModel],
        aligner: Aligner,
        fuser: FuserFactory = C2CFuser,
        layer_map: LayerMap = "terminal",
        layers: Layers = "all",
        gate: GateConfig | None = None,
        prompt_store: PromptStore | None = None,
    ):
        super().__init__()
        self.receiver = receiver.requires_grad_(False).eval()
        self.sharers = nn.ModuleList(sharer.requires_grad_(False).eval() for sharer in sharers)
        self.aligner, self.layer_map, self.layers = aligner, layer_map, layers
        self.prompt_store = prompt_store
        shape = kv_shape(receiver.config)
        self.layer_maps: list[dict[int, int]] = []
        fusers: list[Fuser] = []
        for i, sharer in enumerate(sharers):
            sharer_shape = kv_shape(sharer.config)
            mapped = map_layers(layer_map, layers, shape.num_layers, sharer_shape.num_layers)
            seed = torch.initial_seed() + i
            fusers.append(
                fuser(sharer_shape, shape, Gate(gate or GateConfig(), list(mapped), shape.num_kv_heads, seed))
            )
            self.layer_maps.append(mapped)
        if len(fusers) > 1 and fusers[0].for_one_sharer:
            raise UserError(
                f"fuser {type(fusers[0]).__name__} reads no sharer's cache, so it cannot be one of {len(fusers)}: "
                "name one sharer."
            )
        self.fusers = nn.ModuleList(fusers)
        self.fused_layers = sorted({layer for mapped in self.layer_maps for layer in mapped})

    @property
    def gates(self) -> list[Gate]:
        return [fuser.gate for fuser in self.fusers]

    def train(self, mode: bool = True) -> Communicator:
        """Puts the fusers in training mode; the frozen models stay in eval mode."""
        super().train(mode)
        self.receiver.eval()
        self.sharers.eval()
        return self

    def open_sharers(self) -> list[int]:
        """The sharers of whose cache something is fused now."""
        return [i for i, gate in enumerate(self.gates) if gate.active()]

    def read(self, batch: Batch) -> Reading:
        """What the frozen models make of a batch; communicators of the same models can share it."""
        return Reading(self.receiver, self.sharers, batch, self.prompt_store)

    def prefill(self, batch: Batch, fuse: bool = True, reading: Reading | None = None) -> DynamicCache:
        """The receiver's cache of all prompt tokens but the last, fused with the sharers'.

        Args:
            batch: prompts.
            fuse: False for the receiver's own cache.
            reading: of the batch, if there is one.
        """
        cache = self.receiver_cache(batch, reading)
        if fuse:
            self.fuse(cache, self.sharer_stacks(batch, reading), batch)
        return cache

    def receiver_cache(self, batch: Batch, reading: Reading | None = None) -> DynamicCache:
        """The receiver's own cache of all prompt tokens but the last."""
        return (reading or self.read(batch)).receiver_cache()

    def sharer_stacks(self, batch: Batch, reading: Reading | None = None) -> dict[int, Tensor]:
        """For each sharer with an open gate the KV stack (2, L, B, Hs, N - 1, Ds) opposite the receiver's tokens."""
        reading = reading or self.read(batch)
        return {i: reading.sharer_stack(i, list(self.layer_maps[i].values())) for i in self.open_sharers()}

    def fuse(self, cache: DynamicCache, sharer_stacks: dict[int, Tensor], batch: Batch) -> None:
        """Fuses the sharers' stacks into the receiver's cache, in place.

        Args:
            cache: as `receiver_cache` made it.
            sharer_stacks: as `sharer_stacks` made them.
            batch: says where no sharer token stands opposite.
        """
        fuse_caches([self], [cache], [sharer_stacks], batch)

    def forward(self, batch: Batch, fuse: bool = True, reading: Reading | None = None) -> tuple[Tensor, Tensor]:
        """Next-token loss on the responses.

        Logits are computed at supervised positions only.

        Args:
            batch: prompts and responses.
            fuse: False for the receiver alone.
            reading: of the batch, if there is one.

        Returns:
            The summed cross-entropy in nats, and the number of supervised tokens it is summed over.
        """
        return self.response_loss(self.prefill(batch, fuse, reading), batch)

    def response_loss(self, cache: DynamicCache, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `forward` returns, from a cache of all prompt tokens but the last, to which the response is added."""
        supervised = tuple(batch.supervised)
        logits_TV = self.response_logits(cache, batch, supervised)
        loss = F.cross_entropy(logits_TV.float(), batch.response_ids[supervised], reduction="sum")
        return loss, batch.num_supervised

    def response_logits(self, cache: DynamicCache, batch: Batch, at: tuple[Tensor, ...]) -> Tensor:
        """Logits (T, V) that predict the response tokens at an index into (B, R).

        Args:
            cache: of all prompt tokens but the last; the response is added to it.
            batch: prompts and responses.
            at: T rows and T columns of `batch.response_ids`; no other logits are computed.
        """
        ids = torch.cat([batch.prompt_ids[:, -1:], batch.response_ids[:, :-1]], dim=1)
        mask = torch.cat([batch.prompt_mask, batch.response_mask[:, :-1]], dim=1)
        with logits_at(self.receiver, at):
            logits_1TV = self.receiver(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            ).logits
        return logits_1TV[0]

    @torch.no_grad()
    def generate_ids(
        self,
        batch: Batch,
        fuse: bool = True,
        first_ids: Tensor | None = None,
        reading: Reading | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """The receiver's own `generate` on the fused cache.

        Args:
            batch: prompts; responses in it are ignored.
            fuse: False for the receiver alone.
            first_ids: (B, K) ids that the responses begin with; None for none.
            reading: of the batch, if there is one.
            **generate_kwargs: anything that transformers' `generate` takes.

        Returns:
            What `generate` returns; sequences begin with the padded prompts and `first_ids`.
        """
        settings = generate_kwargs.get("generation_config") or self.receiver.generation_config
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if generate_kwargs.get(name) or getattr(settings, name, None):
                # transformers' assisted decoding starts from an empty cache, and goes wrong on a filled one.
                raise UserError(f"generate cannot take {name}: assisted decoding does not start from a fused cache.")
        cache = self.prefill(batch, fuse, reading)
        copies = max(
            generate_kwargs.get(name) or getattr(settings, name, None) or 1
            for name in ("num_beams", "num_return_sequences")
        )
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        ids, mask = batch.prompt_ids, batch.prompt_mask
        if first_ids is not None:
            ids, mask = torch.cat([ids, first_ids], dim=1), torch.cat([mask, torch.ones_like(first_ids)], dim=1)
        return self.receiver.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            **{"pad_token_id": self.aligner.receiver.pad_token_id, **generate_kwargs},
        )

    def generate(
        self, messages: list[Message] | list[list[Message]], fuse: bool = True, **generate_kwargs: Any
    ) -> str | list[str]:
        """Answers one conversation, or a batch of them.

        Args:
            messages: chat messages (`role`, `content`), or a list of such conversations.
            fuse: False for the receiver alone.
            **generate_kwargs: anything that transformers' `generate` takes.

        Returns:
            The response as text; a list where a batch was given or several sequences asked for.
        """
        if not isinstance(messages, list) or not messages or not all(isinstance(m, (dict, list)) for m in messages):
            raise UserError(
                f"generate was given {messages!r}: give chat messages, [{{'role': 'user', 'content': ...}}], "
                "or a list of such conversations."
            )
        single = isinstance(messages[0], dict)
        batch = self.collate([messages] if single else messages)
        out = self.generate_ids(batch, fuse, **generate_kwargs)
        ids = out if isinstance(out, Tensor) else out.sequences
        texts = self.decode(ids[:, batch.prompt_ids.shape[1] :])
        return texts[0] if single and len(texts) == 1 else texts

    def collate(self, conversations: list[list[Message]]) -> Batch:
        """Conversations as a batch on the receiver's device."""
        prompts = [self.aligner.prompt(messages) for messages in conversations]
        return collate(prompts, pad_ids=self.aligner.pad_ids).to(self.receiver.device)

    def decode(self, ids: Tensor) -> list[str]:
        """Response ids (B, R) as text."""
        return [text.strip() for text in self.aligner.receiver.batch_decode(ids, skip_special_tokens=True)]

    def config(self) -> dict[str, Any]:
        """What a saved fuser says of itself: the models it was trained between, and how."""
        fuser = self.fusers[0]
        return {
            "receiver": self.receiver.name_or_path,
            "sharers": [sharer.name_or_path for sharer in self.sharers],
            "alignment": self.aligner.alignment,
            "template_kwargs": self.aligner.template_kwargs,
            "layer_map": self.layer_map,
            "layers": self.layers,
            "gate": asdict(fuser.gate.config),
            "fuser": {"class_path": fuser.class_path, "init_args": fuser.init_args},
        }

    def save_pretrained(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Saves the fusers, and the names of the models they were trained between.

        Args:
            folder: it is made.
            state: of the fusers, with whole tensors, where they are sharded; None for what they have.
        """
        state = self.fusers.state_dict() if state is None else state
        write_fuser_folder(Path(folder), self.config(), without_statistics(state))

    @classmethod
    def from_pretrained(cls, name: str, dtype: str = "auto") -> Communicator:
        """Loads a fuser with its receiver and sharers, ready to answer.

        Args:
            name: a folder that `save_pretrained` wrote, the hub id of one, a run's folder, or one of its checkpoints.
            dtype: of the frozen models; `auto` for the one they were saved in. Fusers stay in fp32.

        Raises:
            UserError: a part is missing, damaged, or does not fit the models.
        """
        config, state = read_fuser(name)
        try:
            gate = GateConfig(**config["gate"])
        except (TypeError, ValueError) as error:
            raise UserError(f"fuser {name!r}: its config.json is wrong about the gate: {error}") from error
        models = config["receiver"], config["sharers"]
        communicator = load_communicator(
            *models,
            load_aligner(*models, config["alignment"], config["template_kwargs"]),
            dtype,
            fuser=import_fuser(config["fuser"], name),
            layer_map=config["layer_map"],
            layers=config["layers"],
            gate=gate,
        )
        try:
            communicator.fusers.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"fuser {name!r} does not fit its config.json: {error}") from error
        return communicator.eval()


def load_aligner(
    receiver: str,
    sharers: Sequence[str],
    alignment: Alignment = "spans",
    template_kwargs: dict[str, Any] | None = None,
) -> Aligner:
    """The aligner of models named by folder or hub id; reads their tokenizers only."""
    return Aligner(load_tokenizer(receiver), [load_tokenizer(s) for s in sharers], alignment, template_kwargs)


def load_communicator(
    receiver: str, sharers: Sequence[str], aligner: Aligner, dtype: str = "auto", **kwargs: Any
) -> Communicator:
    """A communicator with fresh fusers between models named by folder or hub id.

    Args:
        receiver: folder or hub id.
        sharers: folders or hub ids.
        aligner: of these models, as `load_aligner` makes it.
        dtype: of the frozen models; `auto` for the one they were saved in.
        **kwargs: see `Communicator`.
    """
    return Communicator(*load_models(receiver, sharers, dtype), aligner, **kwargs)


def prefill_together(communicators: Sequence[Communicator], batch: Batch, reading: Reading) -> list[DynamicCache]:
    """Each communicator's fused cache, where all have the same receiver and sharers.

    On a GPU fusers of the same sizes run as one. A communicator whose fusers draw random numbers draws them from the
    seed that torch was given last, as it would alone.
    """
    caches = [c.receiver_cache(batch, reading) for c in communicators]
    stacks = [c.sharer_stacks(batch, reading) for c in communicators]
    draw = [c.training and any(c.fusers[i].draws for i in stacks[k]) for k, c in enumerate(communicators)]
    merged = [k for k, draws in enumerate(draw) if not draws]
    seed = torch.initial_seed()
    for k, draws in enumerate(draw):
        if draws:
            torch.manual_seed(seed)
            communicators[k].fuse(caches[k], stacks[k], batch)
    fuse_caches(*([of[k] for k in merged] for of in (communicators, caches, stacks)), batch)
    return caches


def fuse_caches(
    communicators: Sequence[Communicator],
    caches: Sequence[DynamicCache],
    stacks: Sequence[dict[int, Tensor]],
    batch: Batch,
) -> None:
    """Fuses each communicator's sharer stacks into its cache, in place; see `Communicator.fuse`."""
    own = {k: read_stack(caches[k], c.fused_layers) for k, c in enumerate(communicators) if stacks[k]}
    fused = dict(own)
    for i in range(max((len(c.sharers) for c in communicators), default=0)):
        rows: dict[int, Tensor | None] = {}
        fusions = []
        aligned = batch.sharers[i].aligned
        for k, c in enumerate(communicators):
            if i in stacks[k]:
                mapped = list(c.layer_maps[i])
                places = [c.fused_layers.index(layer) for layer in mapped]
                rows[k] = None if mapped == c.fused_layers else torch.tensor(places, device=own[k].device)
                receiver, onto = (pick(stack[k], 1, rows[k]) for stack in (own, fused))
                fusions.append(Fusion(c.fusers[i], stacks[k][i], receiver, onto, aligned))
        for k, out in zip(rows, fuse_together(fusions)):
            fused[k] = out if rows[k] is None else fused[k].index_copy(1, rows[k], out)
    for k, stack in fused.items():
        write_stack(caches[k], communicators[k].fused_layers, stack)
