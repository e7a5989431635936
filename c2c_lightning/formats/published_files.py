"""The files of a published fuser: their names, what they may hold, and nothing executed that does not belong there.

A fuser of github.com/thu-nics/C2C is a folder with a network for each receiver layer
(`projector_{i}.pt`, a state_dict, and `projector_{i}.json`, its sizes) and `projector_config.json`, which says what feeds
what; the folder above has the recipe, `config.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2c_lightning.errors import UserError, first_line, meant

CLASS = "C2CProjector"
MAP_FILE, RECIPE_FILE, WEIGHTS_FOLDER = "projector_config.json", "config.json", "final"
SHAPES = ("source_dim", "target_dim", "source_num_heads", "target_num_heads")
GATE = {"initial_temperature": 1.0, "final_temperature": 0.001, "anneal_steps": 1929}
DEFAULTS = {"hidden_dim": 1024, "intermediate_dim": 1024, "num_layers": 3, "dropout": 0.1, **GATE}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INIT_ARGS = {*SHAPES, *DEFAULTS, "dtype"}


def is_published(folder: Path) -> bool:
    """Whether a folder holds a fuser in the published format, by itself or in its `final/`."""
    return any((place / MAP_FILE).is_file() for place in (folder, folder / WEIGHTS_FOLDER))


def read_map(file: Path) -> tuple[dict[int, int], dict[int, int], dict[str, Any]]:
    """Sharer layer and number of the network by receiver layer, ascending; and the file as it is."""
    whole = read_json(file)
    try:
        # Receiver 0, sharer 1; of a layer's pairs the first takes effect.
        pairs = {int(layer): tuple(map(int, listed[0])) for layer, listed in whole["0"]["1"].items()}
        layer_map = {layer: pairs[layer][0] for layer in sorted(pairs)}
        numbers = {layer: pairs[layer][1] for layer in layer_map}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f'{file} is not {{"0": {{"1": {{"<receiver layer>": [[<sharer layer>, <projector>]], ...}}}}}}.'
        ) from error
    if not layer_map:
        raise UserError(f"{file} maps no receiver layer.")
    return layer_map, numbers, whole


def refuse_strangers(folder: Path, numbers: set[int]) -> None:
    """Raises a UserError unless the folder has exactly the networks that the map names."""
    for kind in ("json", "pt"):
        there = {
            int(match[1])
            for file in folder.iterdir()
            if (match := re.fullmatch(rf"projector_(\d+)\.{kind}", file.name))
        }
        if there != numbers:
            missing, surplus = sorted(numbers - there), sorted(there - numbers)
            what = f"lacks projector_{missing[0]}" if missing else f"has a surplus projector_{surplus[0]}"
            raise UserError(f"{folder} {what}.{kind}: {MAP_FILE} names the projectors {sorted(numbers)}.")


def common_init_args(specs: Mapping[int, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """The sizes that all networks have.

    Raises:
        UserError: an unknown class or argument, or sizes that differ, so that nothing can be stacked.
    """
    first = next(iter(specs))
    for i, spec in specs.items():
        file = folder / f"projector_{i}.json"
        if spec.get("class") != CLASS or not isinstance(spec.get("init_args"), dict):
            raise UserError(f"{file} has class {spec.get('class')!r}: only {CLASS} with its init_args is known.")
        for name in spec["init_args"].keys() - INIT_ARGS:
            raise UserError(
                f"{file} has the argument {name!r}, which {CLASS} has not. {meant(name, INIT_ARGS)}".strip()
            )
        missing = [name for name in SHAPES if not isinstance(spec["init_args"].get(name), int)]
        if missing:
            raise UserError(f"{file} does not give {missing[0]} as a whole number.")
        if spec != specs[first]:
            raise UserError(f"{file} differs from projector_{first}.json: one fuser has the same sizes in all layers.")
    return specs[first]["init_args"]


def read_state(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A network's tensors, checked.

    Args:
        file: with the tensors and nothing else.
        shapes: by name of every tensor that must be there.

    Raises:
        UserError: no plain tensors, or one is missing, surplus, or of another shape.
    """
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(f"{file} is damaged, or holds more than plain tensors: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{file} holds a {type(state).__name__} that is no state_dict of plain tensors.")
    for name in (*(shapes.keys() - state.keys()), *(state.keys() - shapes.keys())):
        what = "lacks" if name in shapes else "has a surplus"
        raise UserError(f"{file} {what} {name}.")
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(f"{file}: {name} is {list(tensor.shape)}, and must be {list(shapes[name])}.")
        if tensor.dtype not in DTYPES.values():
            raise UserError(f"{file}: {name} is {tensor.dtype}, and must be one of {', '.join(DTYPES)}.")
    return state


def dtypes(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises a UserError that names the file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds a {type(value).__name__}, and must hold an object.")
    return value


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
