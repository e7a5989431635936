"""Frozen models, and what they make of a batch of prompts: computed once for any number of fusers and methods.

Dimensions: L layers, B batch, H kv heads, N prompt tokens but the last, D head_dim, R response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from c2c_lightning.errors import UserError
from c2c_lightning.mapper import Mapper, Prefix
from c2c_lightning.models.alignment import Aligner, Message
from c2c_lightning.models.batch import Batch, collate, exchange_questions
from c2c_lightning.models.cache import (
    branch,
    cache_with_slots,
    logits_at,
    position_ids,
    prefill,
    read_stack,
    tokens_of,
    write_stack,
)
from c2c_lightning.models.checks import check_tokens
from c2c_lightning.models.decoding import generate
from c2c_lightning.models.identity import fingerprint_in_memory, fingerprint_of_files
from c2c_lightning.models.loading import kv_shape
from c2c_lightning.models.private_text import UNREAD
from c2c_lightning.models.prompt_store import PromptStore
from c2c_lightning.models.read_text import UNALIGNED
from c2c_lightning.models.rotation import Rotation


class FrozenModels(nn.Module):
    """A receiver and its sharers, none of which is ever trained.

    Args:
        receiver: the LM that answers.
        sharers: the LMs whose caches are handed over.
        aligner: reads conversations for these models.
        store: where what they make of prompts is kept; None to compute it every time.

    Raises:
        UserError: a model whose cache cannot be fused, or whose tokenizer has more tokens than it knows.
    """

    def __init__(
        self,
        receiver: PreTrainedModel,
        sharers: Sequence[PreTrainedModel],
        aligner: Aligner,
        store: PromptStore | None = None,
    ):
        super().__init__()
        for model, tokenizer in zip((receiver, *sharers), (aligner.receiver, *aligner.sharers)):
            check_tokens(model, tokenizer)
        self.receiver, self.sharers = receiver, nn.ModuleList(sharers)
        self.requires_grad_(False).eval()
        self.aligner, self.store = aligner, store
        self._rotations: dict[PreTrainedModel, Rotation] = {}
        self._fingerprints: dict[PreTrainedModel, str] = {}
        self.receiver_shape, *self.sharer_shapes = (kv_shape(model.config) for model in (receiver, *sharers))

    def train(self, mode: bool = True) -> FrozenModels:
        """Does nothing: frozen models stay in eval mode, without dropout, whatever is trained around them."""
        return super().train(False)

    def read(self, batch: Batch, receiver_cache: DynamicCache | None = None) -> Reading:
        """What the models make of a batch; each of them reads it when first asked for. See `Reading`."""
        return Reading(self, batch, receiver_cache)

    def rotation(self, model: PreTrainedModel) -> Rotation:
        """How a model of these turns its keys; a UserError if nobody can undo it."""
        if model not in self._rotations:
            self._rotations[model] = Rotation(model)
        return self._rotations[model]

    def fingerprint(self, model: PreTrainedModel) -> str:
        """Of all that a model's folder holds; of a model without one, as it was when first asked for."""
        if model not in self._fingerprints:
            name = model.name_or_path
            self._fingerprints[model] = fingerprint_of_files(name) if name else fingerprint_in_memory(model)
        return self._fingerprints[model]

    def prefill(self, model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor) -> DynamicCache:
        """A model's cache after reading left-padded prompts, or what the store has of it."""
        return (prefill if self.store is None else self.store.prefill)(model, ids_BN, mask_BN)

    def response_loss(self, cache: DynamicCache, batch: Batch) -> tuple[Tensor, Tensor]:
        """Next-token loss of the receiver on the responses, on top of a cache.

        The cache is of all prompt tokens but the last; the response is added to it.

        Returns:
            The summed cross-entropy in nats, and the number of supervised tokens that it is summed over.
        """
        supervised = tuple(batch.supervised)
        logits_TV = self.response_logits(cache, batch, supervised)
        loss = F.cross_entropy(logits_TV.float(), batch.response_ids[supervised], reduction="sum")
        return loss, batch.num_supervised

    def response_logits(self, cache: DynamicCache, batch: Batch, at: tuple[Tensor, ...]) -> Tensor:
        """Logits (T, V) that predict the T response tokens at an index into (B, R); no others are computed.

        The cache is of all prompt tokens but the last; the response is added to it.
        """
        ids = torch.cat([batch.prompt_ids[:, -1:], batch.response_ids[:, :-1]], dim=1)
        mask = torch.cat([batch.prompt_mask, batch.response_mask[:, :-1]], dim=1)
        with logits_at(self.receiver, at):
            logits_1TV = self.receiver(
                input_ids=ids,
                attention_mask=mask,
                position_ids=batch.positions(mask)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            ).logits
        return logits_1TV[0]

    def text_loss(
        self, cache: DynamicCache, reading: Reading, answer: float, kl: float, entries: float, prompt: float
    ) -> Tensor:
        """How far responses are from the right ones, and from those of a receiver that has read private texts itself.

        Args:
            cache: of all prompt tokens but the last; the response is added to it.
            reading: of the batch, with a mapper.
            answer: weight of the cross-entropy, in nats.
            kl: weight of the divergence of next-token distributions from those of that receiver, in nats.
            entries: weight of the share of the variance of that receiver's entries that the slots do not have.
            prompt: weight of the share of the variance of its entries of what follows the texts that the cache does not
                have. All layers learn from it, where the distributions of a few tokens say little to the lower ones.

        Returns:
            Their sum over the supervised tokens.
        """
        batch, supervised = reading.batch, tuple(reading.batch.supervised)
        shares = []
        if entries:
            target, has_one = reading.entries_itself()
            shares.append(entries * unexplained(reading.mapped[:, :, has_one], target))
        if prompt:  # before the response is added to the cache
            shares.append(prompt * unexplained(*reading.entries_behind_texts(cache)))
        log_probs_TV = self.response_logits(cache, batch, supervised).float().log_softmax(-1)
        loss = answer * F.nll_loss(log_probs_TV, batch.response_ids[supervised], reduction="sum")
        if kl:
            with torch.no_grad():
                itself = reading.itself
                taught_TV = self.response_logits(itself.receiver_cache(), itself.batch, supervised)
            taught_TV = taught_TV.float().log_softmax(-1)
            loss = loss + kl * F.kl_div(log_probs_TV, taught_TV, reduction="sum", log_target=True)
        for share in shares:
            loss = loss + share * batch.num_supervised
        return loss

    @torch.no_grad()
    def respond(
        self, cache: DynamicCache, batch: Batch, first_ids: Tensor | None = None, **generate_kwargs: Any
    ) -> Any:
        """The receiver's own `generate` on top of a cache; see `models.decoding`.

        Args:
            cache: of all prompt tokens but the last; it is used up.
            batch: the prompts; responses in it are ignored.
            first_ids: (B, K) ids that the responses begin with; None for none.
            **generate_kwargs: anything that transformers' `generate` takes, if it works on a filled cache.

        Returns:
            What `generate` returns; sequences begin with the padded prompts and `first_ids`.

        Raises:
            UserError: a setting does not work on a filled cache.
        """
        ids, mask = batch.prompt_ids, batch.prompt_mask
        if first_ids is not None:
            ids, mask = torch.cat([ids, first_ids], dim=1), torch.cat([mask, torch.ones_like(first_ids)], dim=1)
        positions = None if batch.private is None else batch.positions(mask)
        return generate(self.receiver, self.aligner.receiver, ids, mask, cache, positions, **generate_kwargs)

    def collate(self, conversations: list[list[Message]]) -> Batch:
        """Conversations as a batch on the receiver's device."""
        prompts = [self.aligner.prompt(messages) for messages in conversations]
        return collate(prompts, pad_ids=self.aligner.pad_ids).to(self.receiver.device)

    def decode(self, ids: Tensor) -> list[str]:
        """Response ids (B, R) as text."""
        return [text.strip() for text in self.aligner.receiver.batch_decode(ids, skip_special_tokens=True)]

    def config(self) -> dict[str, Any]:
        """What it takes to read conversations with the same models again, as a fuser's config.json has it."""
        return {
            "receiver": self.receiver.name_or_path,
            "sharers": [sharer.name_or_path for sharer in self.sharers],
            "alignment": self.aligner.alignment,
            "template_kwargs": self.aligner.template_kwargs,
            "chat": asdict(self.aligner.chat),
        }


class Reading:
    """A batch of prompts as the receiver and the sharers have read it.

    Args:
        models: each reads the batch when it is first asked for.
        batch: the prompts, and the responses to them if there are any.
        receiver_cache: of all prompt tokens but the last, if the receiver has read them already.
        sharer_caches: of the sharers that have; a dict that several readings share.
        mapper: makes what stands in the slots of private texts.
    """

    def __init__(
        self,
        models: FrozenModels,
        batch: Batch,
        receiver_cache: DynamicCache | None = None,
        sharer_caches: dict[int, DynamicCache] | None = None,
        mapper: Mapper | None = None,
    ):
        self.models, self.batch, self.mapper = models, batch, mapper
        if receiver_cache is not None:
            self._receiver_cache = receiver_cache
        self._sharer_caches = {} if sharer_caches is None else sharer_caches
        self._stacks: dict[tuple[int, ...], Tensor] = {}
        self._mapped_by: dict[Mapper | None, Reading] = {}

    def receiver_cache(self) -> DynamicCache:
        """The receiver's own cache of all prompt tokens but the last, to be written to."""
        return branch(self._receiver_cache)

    def receiver_stack(self, layers: Sequence[int]) -> Tensor:
        """The receiver's own KV stack (2, L, B, Hr, N, Dr) of some of its layers."""
        return read_stack(self._receiver_cache, layers)

    def cache_with(self, layers: Sequence[int], stack: Tensor) -> DynamicCache:
        """The receiver's cache with a stack (2, L, B, Hr, N, Dr) in the place of these layers."""
        cache = self.receiver_cache()
        write_stack(cache, layers, stack)
        return cache

    def sharer_stack(self, sharer: int, layers: Sequence[int]) -> Tensor:
        """The KV stack (2, L, B, Hs, N, Ds) of some of a sharer's layers opposite the receiver's tokens."""
        key = (sharer, *layers)
        if key not in self._stacks:
            positions = self.batch.sharers[sharer].positions.clamp(min=0)
            self._stacks[key] = read_stack(self._sharer_cache(sharer), layers, positions)
        return self._stacks[key]

    def sharer_cache(self, sharer: int) -> DynamicCache:
        """A sharer's own cache of all tokens of its prompts, to be written to."""
        return branch(self._sharer_cache(sharer))

    def aligned(self, sharer: int) -> Tensor:
        """Places among the B * N receiver tokens that have a token of this sharer opposite."""
        return self.batch.sharers[sharer].aligned

    def with_mapper(self, mapper: Mapper | None) -> Reading:
        """The reading in which a mapper fills the slots; itself if it does already, or there are none.

        With a `Prefix` it is the reading of other prompts, in which the receiver reads the texts itself.
        """
        if self.batch.private is None or mapper is self.mapper:
            return self
        if mapper not in self._mapped_by:
            if isinstance(mapper, Prefix):
                twin = Reading(self.models, self.batch.behind_slots(mapper.length), mapper=mapper)
                slots = twin.batch.private.slots
                twin.text_entries = mapper.blank(len(slots), slots.device)
            else:
                twin = Reading(self.models, self.batch, None, self._sharer_caches, mapper)
                if len(self.batch.private.tokens):
                    twin.text_entries = self.text_entries
            twin.itself = self.itself  # which does not depend on the mapper either
            self._mapped_by[mapper] = twin
        return self._mapped_by[mapper]

    @cached_property
    def text_entries(self) -> Tensor:
        """The first sharer's entries (2, L, T, H, D) of private texts' tokens with a slot, keys without rotation."""
        text, sharer = self.batch.private, self.models.sharers[0]
        cache = self.models.prefill(sharer, text.ids, text.mask)
        return self._unturned(sharer, cache, text.mask, text.tokens)

    @cached_property
    def itself(self) -> Reading:
        """The reading in which the receiver has read private texts itself, and no sharer anything."""
        return self.models.read(self.batch.with_texts())

    def entries_itself(self) -> tuple[Tensor, Tensor]:
        """What a mapper is to come near: what the receiver makes of the texts where it reads them itself.

        Returns:
            Its entries (2, L, T', H, D) opposite the sharer's tokens, keys without rotation, and which (T',) of the
            slots have one.
        """
        text = self.batch.private
        has_one = (text.opposite != UNREAD).nonzero()[:, 0]
        cache, mask = self.itself.receiver_cache(), text.read_mask[:, :-1]
        return self._unturned(self.models.receiver, cache, mask, text.opposite[has_one]), has_one

    def entries_behind_texts(self, cache: DynamicCache) -> tuple[Tensor, Tensor]:
        """What the receiver keeps of the tokens that follow the private texts.

        Args:
            cache: the receiver's of the prompts with slots, but for the last token.

        Returns:
            Its entries in the cache (2, L, T', H, D), keys without rotation, and those where it reads the texts itself:
            the more the slots tell, the closer the two are.
        """
        itself = self.itself
        places = zip(self.batch.behind_texts(), (self.batch, itself.batch), (cache, itself.receiver_cache()))
        receiver = self.models.receiver
        return tuple(self._unturned(receiver, kept, batch.prompt_mask[:, :-1], at) for at, batch, kept in places)

    @cached_property
    def mapped(self) -> Tensor:
        """What the mapper makes of the texts, or made of those handed over, (2, L, T, H, D), keys without rotation.

        Raises:
            UserError: there is no mapper.
        """
        text = self.batch.private
        if text.handed is not None and not len(text.tokens):
            return text.handed
        if self.mapper is None:
            raise UserError(
                "a conversation has a text that the sharer alone reads, and the fuser has no mapper for it: train one "
                "with model.mapper, or put the text into the message."
            )
        mapped = self.mapper(self.text_entries)
        if text.handed is None:
            return mapped
        slots = mapped.new_empty(*mapped.shape[:2], len(text.slots), *mapped.shape[3:])
        slots[:, :, text.is_handed], slots[:, :, ~text.is_handed] = text.handed.to(mapped.dtype), mapped
        return slots

    def slots(self) -> Tensor:
        """What the mapper makes of the texts, (2, L, T, H, D), with keys turned to where the slots stand."""
        receiver = self.models.receiver
        keys, values = self.mapped.to(receiver.dtype).unbind()
        positions = self.batch.private.positions[None]
        turned = self.models.rotation(receiver).on(keys[:, None].transpose(2, 3), positions)
        return torch.stack([turned.transpose(2, 3)[:, 0], values])

    def _unturned(self, model: PreTrainedModel, cache: DynamicCache, mask: Tensor, places: Tensor) -> Tensor:
        keys, values = tokens_of(cache, range(len(cache.layers)), places).unbind()
        positions = position_ids(mask).flatten()[None, places]
        keys = self.models.rotation(model).off(keys[:, None].transpose(2, 3), positions)
        return torch.stack([keys.transpose(2, 3)[:, 0], values])

    def with_sharers_of(self, other: Reading) -> Reading:
        """The reading in which the sharers have read other questions: what the receiver has read stays as it is."""
        exchanged = exchange_questions(self.batch, other.batch)
        return Reading(self.models, exchanged, self._receiver_cache, other._sharer_caches, self.mapper)

    def opposite_only(self, chosen_BN: Tensor) -> Reading:
        """The reading in which only the receiver's chosen tokens have a sharer's token opposite."""
        sharers = [replace(s, positions=s.positions.where(chosen_BN, UNALIGNED)) for s in self.batch.sharers]
        partly = replace(self.batch, sharers=sharers)
        return Reading(self.models, partly, self._receiver_cache, self._sharer_caches, self.mapper)

    def _sharer_cache(self, sharer: int) -> DynamicCache:
        if sharer not in self._sharer_caches:
            prompt = self.batch.sharers[sharer]
            self._sharer_caches[sharer] = self.models.prefill(self.models.sharers[sharer], prompt.ids, prompt.mask)
        return self._sharer_caches[sharer]

    @cached_property
    def _receiver_cache(self) -> DynamicCache:
        ids, mask, receiver = self.batch.prompt_ids[:, :-1], self.batch.prompt_mask[:, :-1], self.models.receiver
        if self.batch.private is None:
            return self.models.prefill(receiver, ids, mask)
        pad_id = self.models.aligner.receiver.pad_token_id
        return cache_with_slots(receiver, ids, mask, self.batch.private, self.slots(), pad_id)


def unexplained(given: Tensor, target: Tensor) -> Tensor:
    """The share of a stack's variance over tokens (2, L, T, H, D) that another lacks, a mean over parts and layers."""
    given, target = given.float(), target.float()
    spread = (target - target.mean(2, keepdim=True)).square().sum((2, 3, 4)).clamp(min=1e-12)
    return ((given - target).square().sum((2, 3, 4)) / spread).mean()
