"""What one run trains: a fuser for each sharer, which of its layers feeds which of the receiver's, and a mapper.

Dimensions: L fused layers, B batch, H kv heads, N prompt tokens but the last, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import Fuser, FuserFactory, KVShape
from c2c_lightning.fuser.c2c import C2CFuser
from c2c_lightning.fuser.gate import Gate, GateConfig
from c2c_lightning.fuser.stacked import pick

LayerMap = str | dict[int, int]
Layers = str | list[int]


class Reading(Protocol):
    """What fusers need to know of a batch of prompts that frozen models have read; see `models.Reading`."""

    def receiver_stack(self, layers: Sequence[int]) -> Tensor: ...
    def sharer_stack(self, sharer: int, layers: Sequence[int]) -> Tensor: ...
    def aligned(self, sharer: int) -> Tensor: ...
    def cache_with(self, layers: Sequence[int], stack: Tensor) -> Any: ...
    def receiver_cache(self) -> Any: ...
    def with_mapper(self, mapper: nn.Module | None) -> Reading: ...


class Fusers(nn.Module):
    """One fuser for each sharer, or none; and the mapper of private texts, if there is one.

    Args:
        receiver: shape of the receiver's cache.
        sharers: shapes of the sharers' caches.
        fuser: makes a fuser from (sharer shape, receiver shape, gate); None for no fusion.
        layer_map: see `map_layers`.
        layers: see `map_layers`.
        gate: the layer-gating configuration, the same for every sharer.
        mapper: makes a `mapper.Mapper` from (first sharer's shape, receiver shape); None for no private texts.

    Attributes:
        layer_maps: for each sharer {receiver layer: sharer layer}.
        fused_layers: the receiver layers that any sharer is mapped to, ascending.

    Raises:
        UserError: an impossible layer map or gate, or several sharers for a fuser that reads none.
    """

    def __init__(
        self,
        receiver: KVShape,
        sharers: Sequence[KVShape],
        fuser: FuserFactory | None = C2CFuser,
        layer_map: LayerMap = "terminal",
        layers: Layers = "all",
        gate: GateConfig | None = None,
        mapper: Callable[[KVShape, KVShape], nn.Module] | None = None,
    ):
        super().__init__()
        self.layer_map, self.layers, self.gate = layer_map, layers, gate or GateConfig()
        fused = sharers if fuser else []
        self.layer_maps = [map_layers(layer_map, layers, receiver.num_layers, sharer.num_layers) for sharer in fused]
        self._number = len(fused)
        for i, (sharer, mapped) in enumerate(zip(fused, self.layer_maps)):
            gates = Gate(self.gate, list(mapped), receiver.num_kv_heads, torch.initial_seed() + i)
            self.add_module(str(i), fuser(sharer, receiver, gates))
        self.mapper = mapper(sharers[0], receiver) if mapper else None
        if len(self) > 1 and self[0].for_one_sharer:
            kind = type(self[0]).__name__
            raise UserError(
                f"fuser {kind} reads no sharer's cache, so it cannot be one of {len(self)}: name one sharer."
            )
        self.fused_layers = sorted({layer for mapped in self.layer_maps for layer in mapped})

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, sharer: int) -> Fuser:
        if not 0 <= sharer < len(self):
            raise IndexError(sharer)
        return self.get_submodule(str(sharer))

    def __iter__(self) -> Iterator[Fuser]:
        return (self[i] for i in range(len(self)))

    @property
    def gates(self) -> list[Gate]:
        return [fuser.gate for fuser in self]

    def open_sharers(self) -> list[int]:
        """The sharers of whose cache something is fused now."""
        return [i for i, gate in enumerate(self.gates) if gate.active()]

    def fuse(self, reading: Reading, sharer_stacks: dict[int, Tensor] | None = None) -> Any:
        """The receiver's cache of a reading, fused: what the response goes on from.

        Args:
            reading: of a batch of prompts.
            sharer_stacks: as `sharer_stacks` gives them; None for the reading's own.
        """
        reading = reading.with_mapper(self.mapper)
        if not len(self):
            return reading.receiver_cache()
        return reading.cache_with(self.fused_layers, self.fused_stack(reading, sharer_stacks))

    def fused_stack(self, reading: Reading, sharer_stacks: dict[int, Tensor] | None = None) -> Tensor:
        """The receiver's stack (2, L, B, H, N, D) of `fused_layers` after fusion; see `fuse`."""
        receiver = fused = reading.receiver_stack(self.fused_layers)
        stacks = self.sharer_stacks(reading) if sharer_stacks is None else sharer_stacks
        for i, sharer in stacks.items():
            # Every fuser reads the receiver's own cache, and the updates of several sharers add up.
            rows = self.rows(i, receiver.device)
            out = self[i](sharer, pick(receiver, 1, rows), pick(fused, 1, rows), reading.aligned(i))
            fused = out if rows is None else fused.index_copy(1, rows, out)
        return fused

    def sharer_stacks(self, reading: Reading) -> dict[int, Tensor]:
        """For each sharer with an open gate its stack (2, L, B, Hs, N, Ds) of the mapped layers."""
        return {i: reading.sharer_stack(i, list(self.layer_maps[i].values())) for i in self.open_sharers()}

    def rows(self, sharer: int, device: torch.device) -> Tensor | None:
        """Where the layers that a sharer is mapped to stand among `fused_layers`; None for all of them."""
        mapped = list(self.layer_maps[sharer])
        if mapped == self.fused_layers:
            return None
        return torch.tensor([self.fused_layers.index(layer) for layer in mapped], device=device)

    def config(self) -> dict[str, Any]:
        """What it takes to make these fusers again, as a fuser's config.json has it."""
        return {
            "layer_map": self.layer_map,
            "layers": self.layers,
            "gate": asdict(self.gate),
            "fuser": spec(self[0]) if len(self) else None,
            **({"mapper": spec(self.mapper)} if self.mapper else {}),
        }


def spec(module: nn.Module) -> dict[str, Any]:
    """A module's class and sizes, as configurations have them."""
    return {"class_path": module.class_path, "init_args": module.init_args}


def map_layers(layer_map: LayerMap, layers: Layers, num_receiver: int, num_sharer: int) -> dict[int, int]:
    """Receiver layer -> sharer layer, ascending; receiver layers left out are never fused.

    Args:
        layer_map: `terminal` (last to last, then backwards, until one model has no layer left),
            `depth` (same relative depth), or the map itself.
        layers: which of the mapped receiver layers to keep: `all`, `first:K`, `last:K`, `every:K`
            (counted over the receiver's layers), or a list of them.
        num_receiver: layers of the receiver.
        num_sharer: layers of the sharer.

    Raises:
        UserError: an unknown word, a layer that the model does not have, or nothing left to fuse.
    """
    if isinstance(layer_map, dict):
        mapped = {int(r): int(s) for r, s in layer_map.items()}
        _check(mapped, num_receiver, "receiver", "model.layer_map")
        _check(mapped.values(), num_sharer, "sharer", "model.layer_map")
    elif layer_map == "terminal":
        mapped = {r: r + num_sharer - num_receiver for r in range(num_receiver) if r + num_sharer >= num_receiver}
    elif layer_map == "depth":
        scale = (num_sharer - 1) / max(num_receiver - 1, 1)
        mapped = {r: round(r * scale) for r in range(num_receiver)}
    else:
        raise UserError(f"model.layer_map is {layer_map!r}: give terminal, depth or {{receiver layer: sharer layer}}.")
    kept = select_layers(layers, num_receiver)
    chosen = {r: mapped[r] for r in sorted(mapped) if r in kept}
    if not chosen:
        raise UserError(
            f"model.layers {layers!r} and model.layer_map {layer_map!r} leave no layer of the receiver's "
            f"{num_receiver} to fuse."
        )
    return chosen


def select_layers(layers: Layers, num_receiver: int, key: str = "model.layers") -> set[int]:
    """The receiver layers that `layers` names, see `map_layers`; `key` is where the user gave them.

    Raises:
        UserError: an unknown word, or a layer that the receiver does not have.
    """
    everything = range(num_receiver)
    if isinstance(layers, list):
        _check(layers, num_receiver, "receiver", key)
        if len(set(layers)) < len(layers):
            raise UserError(f"{key} {layers} names a layer twice.")
        return set(layers)
    if layers == "all":
        return set(everything)
    word, _, number = layers.partition(":")
    if word not in ("first", "last", "every") or not number.isdigit() or int(number) == 0:
        raise UserError(f"{key} is {layers!r}: give all, first:K, last:K, every:K (K at least 1) or a list of layers.")
    k = int(number)
    if k > num_receiver:
        raise UserError(f"{key} is {layers!r}, but the receiver has {num_receiver} layers: give all.")
    return set({"first": everything[:k], "last": everything[-k:], "every": everything[::k]}[word])


def _check(layers: Iterable[int], num_layers: int, model: str, key: str) -> None:
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise UserError(f"{key} names {model} layer {layer}, but the {model} has layers 0 to {num_layers - 1}.")
