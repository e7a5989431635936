"""Fusers as github.com/thu-nics/C2C publishes them, read into ours and written back, bit for bit.

Theirs has a network for each receiver layer, in files of its own (see published_files.py); ours holds all of them
stacked. What has no place in ours, such as dtypes, is kept word for word under `published` in its config.json, so that an
export gives back what was imported.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError
from c2c_lightning.files import checked, whole_folder
from c2c_lightning.formats.checkpoint import save
from c2c_lightning.formats.config import check_config, find_model, mismatch, on_meta, shapes_of
from c2c_lightning.formats.published_files import (
    CLASS,
    DTYPES,
    MAP_FILE,
    OURS,
    RECIPE_FILE,
    WEIGHTS_FOLDER,
    Recipe,
    layers_and_numbers,
    read_object,
    read_projectors,
)
from c2c_lightning.fuser import C2CFuser, Gate, GateConfig, KVShape, map_layers
from c2c_lightning.fuser.c2c import Dtype
from c2c_lightning.fuser.stacked import matrices, transposed
from c2c_lightning.models import ChatConfig
from c2c_lightning.models.loading import kv_shape, load_config

PUBLISHED = "published"  # the key in our config.json
OWN_KEYS = ("alignment", "template_kwargs", "chat", "gate")
CLASS_PATH, ITS_FIRST = "c2c_lightning.fuser.C2CFuser", "c2c_lightning.fuser.c2c.C2CFuser"
PARTS = ("key", "value")
TEMPERATURE, LOGIT = "gate_temperature", "0.gate.logit"
# Where a parameter of ours stands in a part of theirs.
PREFIXES = {
    "gate.logit": "gate_logit",
    "input.": "in.",
    "trunk.": "mlp1.blocks.0.",
    "weight_block.": "scalar_mlp2.blocks.0.",
    "weight_head.": "scalar_head.",
    "update_blocks.": "proj_mlp2.blocks.",
    "update_head.": "proj_out.",
}
# Their words for shapes of caches and for gates, and what is the case where a fuser does not say.
SHAPES = ("source_dim", "target_dim", "source_num_heads", "target_num_heads")
GATE = {"initial_temperature": 1.0, "final_temperature": 0.001, "anneal_steps": 1929}
DEFAULTS = {"hidden_dim": 1024, "intermediate_dim": 1024, "num_layers": 3, "dropout": 0.1, **GATE}
# Their word for a size of ours.
SIZES = {"hidden": "hidden_dim", "intermediate": "intermediate_dim", "num_layers": "num_layers", "dropout": "dropout"}


class Kept(TypedDict):
    """What has no place in ours, of a fuser that was imported."""

    recipe: dict[str, Any] | None
    projector_config: dict[str, Any]
    projectors: dict[str, dict[str, Any]]
    gate_temperature: dict[str, float]
    dtypes: dict[str, dict[str, Dtype]]


def read_published(
    folder: Path, receiver: str | None = None, sharer: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A published fuser as the config and the weights of ours; weights are in fp32, which holds theirs exactly.

    Args:
        folder: with `projector_config.json`, or the one above it.
        receiver: folder or hub id; None for what the recipe says.
        sharer: the same.

    Raises:
        UserError: a file or tensor is missing, surplus, damaged or of another shape, or does not fit the models.
    """
    folder = folder if (folder / MAP_FILE).is_file() else folder / WEIGHTS_FOLDER
    recipe_file = folder.parent / RECIPE_FILE
    recipe = read_object(recipe_file, Recipe) if recipe_file.is_file() else None
    models = (recipe or {}).get("model") or {}
    receiver, sharer = receiver or models.get("base_model"), sharer or models.get("teacher_model")
    if not receiver or not sharer:
        raise UserError(
            f"{recipe_file} does not say which models it was trained between (model.base_model, "
            "model.teacher_model): name them with convert --receiver ... --sharer ..."
        )
    whole_map = read_object(folder / MAP_FILE, dict[str, Any])
    layer_map, numbers = layers_and_numbers(whole_map, str(folder / MAP_FILE))
    spec, states = read_projectors(folder, numbers.values())
    said = {**DEFAULTS, **spec["init_args"]}
    source_dim, target_dim, source_heads, target_heads = (said[name] for name in SHAPES)
    shapes = KVShape(1, source_heads, source_dim), KVShape(1, target_heads, target_dim)
    num_sharer = fitting("sharer", sharer, shapes[0], folder)
    num_receiver = fitting("receiver", receiver, shapes[1], folder)
    try:
        map_layers(layer_map, "all", num_receiver, num_sharer)
    except UserError as error:
        raise UserError(f"{folder / MAP_FILE}: {str(error).removeprefix('model.layer_map ')}") from error
    fuser = {ours: said[theirs] for ours, theirs in SIZES.items()} | {"evaluate_in": computed_in(said, folder)}
    layer = one_layer(shapes, fuser, max(map(len, states.values())), str(folder))
    for i, state in states.items():
        wrong = mismatch(shapes_of(unstacked(layer, 0, 1)) | {TEMPERATURE: ()}, shapes_of(state))
        if wrong:
            raise UserError(f"{folder / f'projector_{i}.pt'}: {wrong}.")
    first, last, steps = (said[name] for name in GATE)
    config = {
        "format": 1,  # as theirs, matrices are (out, in)
        "receiver": receiver,
        "sharers": [sharer],
        "alignment": "published",
        "template_kwargs": {"enable_thinking": False},
        "chat": asdict(ChatConfig()),
        "layer_map": layer_map,
        "layers": "all",
        "gate": asdict(GateConfig(noise="gumbel", init=0.0, temperature=(first, last), anneal_steps=steps)),
        PUBLISHED: {
            "recipe": recipe,
            "projector_config": whole_map,
            "projectors": {str(i): spec for i in states},
            TEMPERATURE: {str(i): state[TEMPERATURE].item() for i, state in states.items()},
            "dtypes": {
                str(i): {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
                for i, state in states.items()
            },
        },
    }
    own = (recipe or {}).get(OURS) or {}
    config |= {key: own[key] for key in OWN_KEYS if key in own}
    fuser["evaluate_in"] = own.get("evaluate_in", fuser["evaluate_in"])
    config["fuser"] = {"class_path": CLASS_PATH, "init_args": fuser}
    weights = stacked([states[numbers[layer]] for layer in layer_map], layer)
    return check_config(config, f"{recipe_file}: {OURS}"), weights


def write_published(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes a fuser of ours in the published format: recipe in the folder, the rest in its `final/`.

    Args:
        folder: must not exist.
        config: of ours.
        state: its weights.

    Raises:
        UserError: the published format has no such fuser, and why; or the folder cannot be written.
    """
    refuse_unpublishable(config)
    receiver, sharer = (kv_shape(load_config(name)) for name in (config["receiver"], config["sharers"][0]))
    layer_map = map_layers(config["layer_map"], config["layers"], receiver.num_layers, sharer.num_layers)
    if config["format"] != 1:
        state = transposed(state, [name for name in state if name.endswith(".weight")])
    networks = [unstacked(state, place, len(layer_map)) for place in range(len(layer_map))]
    where = f"this fuser's section {PUBLISHED}"
    kept = config.get(PUBLISHED) or native(config, layer_map, (sharer, receiver), networks[0])
    kept = checked(kept, Kept, where)
    mapped, numbers = layers_and_numbers(kept["projector_config"], where)
    names = {str(i) for i in numbers.values()}
    if mapped != layer_map or any(kept[part].keys() != names for part in ("projectors", TEMPERATURE, "dtypes")):
        raise UserError(f"{where} is of another fuser: its layers or projectors are not {numbers}.")
    with whole_folder(folder) as unfinished:
        final = unfinished / WEIGHTS_FOLDER
        final.mkdir()
        if kept["recipe"] is not None:
            write_json(unfinished / RECIPE_FILE, kept["recipe"])
        write_json(final / MAP_FILE, kept["projector_config"])
        for network, i in zip(networks, map(str, numbers.values())):
            network[TEMPERATURE] = torch.tensor(kept[TEMPERATURE][i])
            dtypes = kept["dtypes"][i]
            if network.keys() != dtypes.keys():
                raise UserError(f"{where} is of another fuser: its dtypes are not those of its tensors.")
            tensors = {name: tensor.to(DTYPES[dtypes[name]]).clone() for name, tensor in network.items()}
            save(tensors, final / f"projector_{i}.pt")
            write_json(final / f"projector_{i}.json", kept["projectors"][i])


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def refuse_unpublishable(config: Mapping[str, Any]) -> None:
    """Raises a UserError if the published format has no such fuser."""
    gate = GateConfig(**config["gate"])
    for is_wrong, what in (
        (config["fuser"] is None or "mapper" in config, "has a mapper of private texts, and not a C2CFuser alone"),
        (config["fuser"] and config["fuser"]["class_path"] not in (CLASS_PATH, ITS_FIRST), "is no C2CFuser"),
        (len(config["sharers"]) != 1, f"has {len(config['sharers'])} sharers, and not one"),
        (gate.kind != "learned", f"has gates of kind {gate.kind}, and not learned ones"),
        (gate.parts != "both", f"fuses {gate.parts}, and not both keys and values"),
        (gate.granularity != "layer", "has a gate for every head, and not one for every layer"),
    ):
        if is_wrong:
            raise UserError(f"this fuser {what}: the published format has no such fuser.")


def native(
    config: Mapping[str, Any],
    layer_map: Mapping[int, int],
    shapes: tuple[KVShape, KVShape],
    names: Iterable[str],
) -> dict[str, Any]:
    """What the published format says of a fuser of ours that was never in it; shapes are the sharer's and receiver's."""
    gate, fuser = GateConfig(**config["gate"]), config["fuser"]["init_args"]
    filled = {name: parameter.default for name, parameter in inspect.signature(C2CFuser).parameters.items()} | fuser
    filled["intermediate"] = filled["intermediate"] or filled["hidden"]
    spec = {
        "class": CLASS,
        "init_args": {
            **dict(zip(SHAPES, [*(shape.head_dim for shape in shapes), *(shape.num_kv_heads for shape in shapes)])),
            **{theirs: filled[ours] for ours, theirs in SIZES.items()},
            "initial_temperature": gate.temperature[0],
            "final_temperature": gate.temperature[1],
            **({} if gate.anneal_steps is None else {"anneal_steps": gate.anneal_steps}),
            "dtype": {"__type__": "torch.dtype", "value": "float32"},
        },
    }
    numbers = [str(i) for i in range(len(layer_map))]
    return {
        "recipe": {
            "model": {"base_model": config["receiver"], "teacher_model": config["sharers"][0]},
            OURS: {**{key: config[key] for key in OWN_KEYS}, "evaluate_in": fuser.get("evaluate_in")},
        },
        "projector_config": {"0": {"1": {str(r): [[s, i]] for i, (r, s) in enumerate(layer_map.items())}}},
        "projectors": dict.fromkeys(numbers, spec),
        TEMPERATURE: dict.fromkeys(numbers, gate.temperature[1]),
        "dtypes": dict.fromkeys(numbers, dict.fromkeys([*names, TEMPERATURE], "float32")),
    }


def computed_in(said: Mapping[str, Any], folder: Path) -> str:
    """The dtype of a projector's arguments."""
    dtype = said.get("dtype") or "float32"
    dtype = dtype.get("value") if isinstance(dtype, Mapping) else dtype
    word = str(dtype).removeprefix("torch.")
    if word not in get_args(Dtype):
        raise UserError(f"{folder}: its projectors have dtype {dtype!r}: it must be {', '.join(get_args(Dtype))}.")
    return word


def fitting(name: str, model: str, shape: KVShape, folder: Path) -> int:
    """The number of layers of a model; raises a UserError if its cache has not the shape that the fuser was made for."""
    has = kv_shape(load_config(find_model(model, str(folder))))
    if (has.num_kv_heads, has.head_dim) != (shape.num_kv_heads, shape.head_dim):
        raise UserError(
            f"{folder} was made for a {name} with {shape.num_kv_heads} kv heads of {shape.head_dim}, but {model} has "
            f"{has.num_kv_heads} of {has.head_dim}."
        )
    return has.num_layers


def one_layer(shapes: tuple[KVShape, KVShape], fuser: Mapping[str, Any], most: int, name: str) -> dict[str, Tensor]:
    """The state of a fuser of one layer, without memory, its matrices as (out, in); see `on_meta`."""
    made = on_meta(lambda: C2CFuser(*shapes, Gate(GateConfig(), [0], 1), **fuser), most, name)
    return {f"0.{name}": tensor for name, tensor in transposed(made.state_dict(), matrices(made)).items()}


def their_name(part: str, name: str) -> str:
    """Of a parameter of ours."""
    name = name.removeprefix("0.")
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return f"{part}_{PREFIXES[prefix]}{name.removeprefix(prefix)}" + ".weight" * name.endswith("norm")


def stacked(states: Sequence[Mapping[str, Tensor]], layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Networks by layer as the state of our fusers, of which one layer is given: those for keys, then those for values."""
    ours = {}
    for name, tensor in layer.items():
        rows = [state[their_name(part, name)].float().reshape(tensor.shape[1:]) for part in PARTS for state in states]
        ours[name] = torch.stack(rows)
    return ours | {LOGIT: ours[LOGIT].reshape(len(PARTS), -1, 1)}


def unstacked(state: Mapping[str, Tensor], place: int, num_layers: int) -> dict[str, Tensor]:
    """The network of one layer, its temperature aside.

    Args:
        state: of our fusers.
        place: of the layer among those that are mapped.
        num_layers: how many are.
    """
    theirs = {}
    for p, part in enumerate(PARTS):
        for name, tensor in state.items():
            row = (tensor.flatten(0, 1) if name == LOGIT else tensor)[p * num_layers + place]
            # Ours have an axis of one where theirs are vectors.
            theirs[their_name(part, name)] = row[0] if name.endswith(("norm", "bias", "logit")) else row
    return theirs
