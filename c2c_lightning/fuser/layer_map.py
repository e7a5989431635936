"""Which sharer layer feeds which receiver layer, and which receiver layers may be fused at all."""

from __future__ import annotations

from c2c_lightning.errors import UserError

LayerMap = str | dict[int, int]
Layers = str | list[int]


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
        for receiver, sharer in mapped.items():
            _check(receiver, num_receiver, "receiver", "model.layer_map")
            _check(sharer, num_sharer, "sharer", "model.layer_map")
    elif layer_map == "terminal":
        mapped = {r: r + num_sharer - num_receiver for r in range(num_receiver) if r + num_sharer >= num_receiver}
    elif layer_map == "depth":
        scale = (num_sharer - 1) / max(num_receiver - 1, 1)
        mapped = {r: round(r * scale) for r in range(num_receiver)}
    else:
        raise UserError(f"model.layer_map is {layer_map!r}: give terminal, depth or {{receiver layer: sharer layer}}.")
    kept = _select(layers, num_receiver)
    chosen = {r: mapped[r] for r in sorted(mapped) if r in kept}
    if not chosen:
        raise UserError(
            f"model.layers {layers!r} and model.layer_map {layer_map!r} leave no layer of the receiver's "
            f"{num_receiver} to fuse."
        )
    return chosen


def _select(layers: Layers, num_receiver: int) -> set[int]:
    everything = range(num_receiver)
    if isinstance(layers, list):
        for layer in layers:
            _check(layer, num_receiver, "receiver", "model.layers")
        if len(set(layers)) < len(layers):
            raise UserError(f"model.layers {layers} names a layer twice.")
        return set(layers)
    if layers == "all":
        return set(everything)
    word, _, number = layers.partition(":")
    if word in ("first", "last", "every") and number.isdigit() and int(number) > 0:
        k = int(number)
        if k > num_receiver:
            raise UserError(f"model.layers is {layers!r}, but the receiver has {num_receiver} layers.")
        return set({"first": everything[:k], "last": everything[-k:], "every": everything[::k]}[word])
    raise UserError(
        f"model.layers is {layers!r}: give all, first:K, last:K, every:K (K at least 1) or a list of layers."
    )


def _check(layer: int, num_layers: int, model: str, key: str) -> None:
    if not 0 <= layer < num_layers:
        raise UserError(f"{key} names {model} layer {layer}, but the {model} has layers 0 to {num_layers - 1}.")
