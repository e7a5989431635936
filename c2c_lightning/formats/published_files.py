"""The files of a published fuser: their names, what they may hold, and nothing executed that does not belong there.

A fuser of github.com/thu-nics/C2C is a folder with a projector, a network, for each receiver layer
(`projector_{i}.pt`, a state_dict, and `projector_{i}.json`, its sizes) and `projector_config.json`, which says what feeds
what; the folder above has the recipe, `config.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required

import torch
from pydantic import ConfigDict, Field, with_config
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.files import checked, read_json
from c2c_lightning.formats.checkpoint import refuse_infinite
from c2c_lightning.fuser.c2c import Dtype
from c2c_lightning.models import Alignment

CLASS = "C2CProjector"
OURS = "c2c_lightning"  # the section of a recipe in which an export says what the format has no place for
MAP_FILE, RECIPE_FILE, WEIGHTS_FOLDER = "projector_config.json", "config.json", "final"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Size = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@with_config(ConfigDict(extra="forbid"))
class InitArgs(TypedDict, total=False):
    source_dim: Required[Size]
    target_dim: Required[Size]
    source_num_heads: Required[Size]
    target_num_heads: Required[Size]
    hidden_dim: Size
    intermediate_dim: Size
    num_layers: Size
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    initial_temperature: Annotated[Number, Field(gt=0)]
    final_temperature: Annotated[Number, Field(gt=0)]
    anneal_steps: Size
    dtype: Any


Spec = TypedDict("Spec", {"class": Literal["C2CProjector"], "init_args": InitArgs})
# Receiver 0, sharer 1: by receiver layer pairs of a sharer layer and a projector, of which the first takes effect.
Pairs = Annotated[list[Annotated[list[int], Field(min_length=2)]], Field(min_length=1)]
ReceiverLayers = TypedDict("ReceiverLayers", {"1": Annotated[dict[int, Pairs], Field(min_length=1)]})
LayerPairs = TypedDict("LayerPairs", {"0": ReceiverLayers})


class Models(TypedDict, total=False):
    base_model: str | None
    teacher_model: str | None


class OwnSection(TypedDict, total=False):
    alignment: Alignment
    template_kwargs: dict[str, Any] | None
    chat: dict[str, Any]
    gate: dict[str, Any]
    evaluate_in: Dtype | None


Recipe = TypedDict("Recipe", {"model": NotRequired[Models | None], OURS: NotRequired[OwnSection | None]})


def is_published(folder: Path) -> bool:
    """Whether a folder holds a fuser in the published format, by itself or in its `final/`."""
    return any((place / MAP_FILE).is_file() for place in (folder, folder / WEIGHTS_FOLDER))


def read_object(file: Path, schema: Any, remedy: str = "") -> dict[str, Any]:
    """A JSON object as it stands, once it has been checked."""
    whole = read_json(file, dict[str, Any], "fuser's")
    checked(whole, schema, str(file), remedy)
    return whole


def layers_and_numbers(whole: Mapping[str, Any], where: str) -> tuple[dict[int, int], dict[int, int]]:
    """Sharer layer and number of the projector by receiver layer, ascending."""
    remedy = 'It is {"0": {"1": {"<receiver layer>": [[<sharer layer>, <projector>]], ...}}}.'
    pairs = checked(whole, LayerPairs, where, remedy)["0"]["1"]
    return tuple({layer: pairs[layer][0][place] for layer in sorted(pairs)} for place in (0, 1))


def read_projectors(folder: Path, numbers: Iterable[int]) -> tuple[dict[str, Any], dict[int, dict[str, Tensor]]]:
    """What all projectors say of themselves, and their tensors by number.

    Raises:
        UserError: a file is missing or surplus, damaged, or says what differs, so that nothing can be stacked.
    """
    numbers = sorted(set(numbers))
    wanted = {f"projector_{i}.{kind}" for i in numbers for kind in ("json", "pt")}
    there = {file.name for file in folder.iterdir() if re.fullmatch(r"projector_\d+\.(json|pt)", file.name)}
    for name in sorted(wanted ^ there):
        what = "lacks" if name in wanted else "has a surplus"
        raise UserError(f"{folder} {what} {name}: {MAP_FILE} names the projectors {numbers}.")
    remedy = f"{CLASS} takes {', '.join(InitArgs.__annotations__)}."
    specs = {i: read_object(folder / f"projector_{i}.json", Spec, remedy) for i in numbers}
    first = specs[numbers[0]]
    for i, spec in specs.items():
        if spec != first:
            raise UserError(
                f"{folder}/projector_{i}.json differs from projector_{numbers[0]}.json: one fuser has the same sizes "
                "in all layers."
            )
    return first, {i: read_state(folder / f"projector_{i}.pt") for i in numbers}


def read_state(file: Path) -> dict[str, Tensor]:
    """A projector's tensors.

    Raises:
        UserError: it holds anything but tensors of finite numbers.
    """
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(f"{file} is damaged, or holds more than plain tensors: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{file} holds a {type(state).__name__} that is no state_dict of plain tensors.")
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES.values():
            raise UserError(f"{file}: {name} is {tensor.dtype}, and must be one of {', '.join(DTYPES)}.")
    refuse_infinite(state.items(), str(file))
    return state
