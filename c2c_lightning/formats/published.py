"""Fusers as github.com/thu-nics/C2C publishes them, read into ours and written back, bit for bit.

Theirs has a network for each receiver layer, in files of its own (see published_files.py); ours holds all of them
stacked. What has no place in ours, such as dtypes, is kept word for word under `published` in its config.json, so that an
export gives back what was imported.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError
from c2c_lightning.files import checked, whole_folder
from c2c_lightning.formats.checkpoint import save
from c2c_lightning.formats.config import check_config, find_model, mismatch, on_meta
from c2c_lightning.formats.published_files import (
    CLASS,
    DEFAULTS,
    DTYPES,
    GATE,
    MAP_FILE,
    OURS,
    RECIPE_FILE,
    SHAPES,
    WEIGHTS_FOLDER,
    Recipe,
    dtypes,
    layers_and_numbers,
    read_object,
    read_specs,
    read_state,
    refuse_strangers,
)
from c2c_lightning.fuser import C2CFuser, Gate, GateConfig, KVShape, map_layers
from c2c_lightning.fuser.c2c import Dtype
from c2c_lightning.fuser.stacked import matrices, transposed
from c2c_lightning.models.loading import kv_shape, load_config

PUBLISHED = "published"  # the key in our config.json
OWN_KEYS = ("alignment", "template_kwargs", "gate")
CLASS_PATH, ITS_FIRST = "c2c_lightning.fuser.C2CFuser", "c2c_lightning.fuser.c2c.C2CFuser"
PARTS = ("key", "value")
TEMPERATURE = "gate_temperature"
# Where a parameter of ours stands in a part of theirs.
PREFIXES = {
    "input.": "in.",
    "trunk.": "mlp1.blocks.0.",
    "weight_block.": "scalar_mlp2.blocks.0.",
    "weight_head.": "scalar_head.",
    "update_blocks.": "proj_mlp2.blocks.",
    "update_head.": "proj_out.",
}
# Their word for a size of ours.
SIZES = {"hidden": "hidden_dim", "intermediate": "intermediate_dim", "num_layers": "num_layers", "dropout": "dropout"}
C2C_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(C2CFuser).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


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

    Nothing is unpickled but plain tensors.

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
    refuse_strangers(folder, set(numbers.values()))
    specs = read_specs(folder, sorted(set(numbers.values())))
    fuser, gate, shapes = sizes(next(iter(specs.values()))["init_args"], folder)
    num_sharer = fitting("sharer", sharer, shapes[0], folder)
    num_receiver = fitting("receiver", receiver, shapes[1], folder)
    try:
        map_layers(layer_map, "all", num_receiver, num_sharer)
    except UserError as error:
        raise UserError(f"{folder / MAP_FILE}: {str(error).removeprefix('model.layer_map ')}") from error
    states = {i: read_state(folder / f"projector_{i}.pt") for i in specs}
    expected = parameter_shapes(fuser, shapes, max(map(len, states.values())), str(folder))
    for i, state in states.items():
        wrong = mismatch(their_shapes(expected), {name: tuple(tensor.shape) for name, tensor in state.items()})
        if wrong:
            raise UserError(f"{folder / f'projector_{i}.pt'}: {wrong}.")
    config = {
        "format": 1,  # as theirs, matrices are (out, in)
        "receiver": receiver,
        "sharers": [sharer],
        "alignment": "published",
        "template_kwargs": {"enable_thinking": False},
        "layer_map": layer_map,
        "layers": "all",
        "gate": asdict(gate),
        "fuser": {"class_path": CLASS_PATH, "init_args": fuser},
        PUBLISHED: {
            "recipe": recipe,
            "projector_config": whole_map,
            "projectors": {str(i): spec for i, spec in specs.items()},
            TEMPERATURE: {str(i): state[TEMPERATURE].item() for i, state in states.items()},
            "dtypes": {str(i): dtypes(state) for i, state in states.items()},
        },
    }
    said = (recipe or {}).get(OURS) or {}
    config |= {key: said[key] for key in OWN_KEYS if key in said}
    if "evaluate_in" in said:
        config["fuser"]["init_args"]["evaluate_in"] = said["evaluate_in"]
    weights = stacked([states[numbers[layer]] for layer in layer_map], expected)
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
    layer_map = publishable(config)
    if config["format"] != 1:
        state = transposed(state, [name for name in state if name.endswith(".weight")])
    where = f"this fuser's section {PUBLISHED}"
    kept = checked(config.get(PUBLISHED) or native(config, layer_map, state), Kept, where)
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
        for place, i in enumerate(numbers.values()):
            own = unstacked(state, place, len(numbers))
            own[TEMPERATURE] = torch.tensor(kept[TEMPERATURE][str(i)])
            if own.keys() != kept["dtypes"][str(i)].keys():
                raise UserError(f"{where} is of another fuser: its dtypes are not those of its tensors.")
            own = {name: tensor.to(DTYPES[kept["dtypes"][str(i)][name]]).clone() for name, tensor in own.items()}
            save(own, final / f"projector_{i}.pt")
            write_json(final / f"projector_{i}.json", kept["projectors"][str(i)])


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def publishable(config: Mapping[str, Any]) -> dict[int, int]:
    """The layer map of a fuser that the published format has.

    Raises:
        UserError: it has no such fuser.
    """
    gate = GateConfig(**config["gate"])
    for is_wrong, what in (
        (config["fuser"]["class_path"] not in (CLASS_PATH, ITS_FIRST), "is no C2CFuser"),
        (len(config["sharers"]) != 1, f"has {len(config['sharers'])} sharers, and not one"),
        (gate.kind != "learned", f"has gates of kind {gate.kind}, and not learned ones"),
        (gate.parts != "both", f"fuses {gate.parts}, and not both keys and values"),
        (gate.granularity != "layer", "has a gate for every head, and not one for every layer"),
    ):
        if is_wrong:
            raise UserError(f"this fuser {what}: the published format has no such fuser.")
    receiver, sharer = (kv_shape(load_config(name)) for name in (config["receiver"], config["sharers"][0]))
    return map_layers(config["layer_map"], config["layers"], receiver.num_layers, sharer.num_layers)


def native(config: Mapping[str, Any], layer_map: Mapping[int, int], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the published format says of a fuser of ours that was never in it."""
    gate, fuser = GateConfig(**config["gate"]), config["fuser"]["init_args"]
    sharer, receiver = (kv_shape(load_config(name)) for name in (config["sharers"][0], config["receiver"]))
    sizes = (sharer.head_dim, receiver.head_dim, sharer.num_kv_heads, receiver.num_kv_heads)
    filled = {**C2C_DEFAULTS, **fuser}
    filled["intermediate"] = filled["intermediate"] or filled["hidden"]
    spec = {
        "class": CLASS,
        "init_args": {
            **dict(zip(SHAPES, sizes)),
            **{theirs: filled[ours] for ours, theirs in SIZES.items()},
            "initial_temperature": gate.temperature[0],
            "final_temperature": gate.temperature[1],
            **({} if gate.anneal_steps is None else {"anneal_steps": gate.anneal_steps}),
            "dtype": {"__type__": "torch.dtype", "value": "float32"},
        },
    }
    numbers = range(len(layer_map))
    names = [*unstacked(state, 0, len(layer_map)), TEMPERATURE]
    return {
        "recipe": {
            "model": {"base_model": config["receiver"], "teacher_model": config["sharers"][0]},
            OURS: {**{key: config[key] for key in OWN_KEYS}, "evaluate_in": fuser.get("evaluate_in")},
        },
        "projector_config": {"0": {"1": {str(r): [[s, i]] for i, (r, s) in enumerate(layer_map.items())}}},
        "projectors": {str(i): spec for i in numbers},
        TEMPERATURE: {str(i): gate.temperature[1] for i in numbers},
        "dtypes": {str(i): dict.fromkeys(names, "float32") for i in numbers},
    }


def sizes(init_args: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], GateConfig, tuple[KVShape, KVShape]]:
    """A fuser's sizes, its gate, and the shapes of sharer and receiver that it was made for (layers aside)."""
    said = {**DEFAULTS, **init_args}
    fuser = {ours: said[theirs] for ours, theirs in SIZES.items()}
    dtype = said.get("dtype") or "float32"
    dtype = dtype.get("value") if isinstance(dtype, Mapping) else dtype
    fuser["evaluate_in"] = str(dtype).removeprefix("torch.")
    if fuser["evaluate_in"] not in get_args(Dtype):
        raise UserError(f"{folder}: its projectors have dtype {dtype!r}: it must be {', '.join(get_args(Dtype))}.")
    first, last, steps = (said[name] for name in GATE)
    source_dim, target_dim, source_heads, target_heads = (said[name] for name in SHAPES)
    gate = GateConfig(noise="gumbel", init=0.0, temperature=(first, last), anneal_steps=steps)
    return fuser, gate, (KVShape(1, source_heads, source_dim), KVShape(1, target_heads, target_dim))


def fitting(name: str, model: str, shape: KVShape, folder: Path) -> int:
    """The number of layers of a model; raises a UserError if its cache has not the shape that the fuser was made for."""
    has = kv_shape(load_config(find_model(model, str(folder))))
    if (has.num_kv_heads, has.head_dim) != (shape.num_kv_heads, shape.head_dim):
        raise UserError(
            f"{folder} was made for a {name} with {shape.num_kv_heads} kv heads of {shape.head_dim}, but {model} has "
            f"{has.num_kv_heads} of {has.head_dim}."
        )
    return has.num_layers


def parameter_shapes(
    fuser: Mapping[str, Any], shapes: tuple[KVShape, KVShape], most: int, name: str
) -> dict[str, torch.Size]:
    """The shapes of one group of our parameters, by our name; see `on_meta`."""
    made = on_meta(lambda: C2CFuser(*shapes, Gate(GateConfig(parts="keys"), [0], 1), **fuser), most, name)
    parameters = transposed(dict(made.named_parameters()), matrices(made))
    return {name: p[0].shape for name, p in parameters.items() if not name.startswith("gate.")}


def their_name(name: str) -> str:
    """The name, within a part, of a parameter of ours."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[prefix] + re.sub(r"norm$", "norm.weight", name.removeprefix(prefix))


def their_shapes(expected: Mapping[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    """The shapes of all of a network's tensors, by their name, from those of one group of ours."""
    # Ours have an axis of one where theirs are vectors.
    shapes = {
        f"{part}_{their_name(name)}": tuple(shape[1:] if shape[0] == 1 and is_vector(name) else shape)
        for part in PARTS
        for name, shape in expected.items()
    }
    return shapes | {f"{part}_gate_logit": () for part in PARTS} | {TEMPERATURE: ()}


def is_vector(name: str) -> bool:
    return name.endswith(("norm", "bias"))


def stacked(states: list[dict[str, Tensor]], expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Networks by layer as the state of our fusers: first all that are for keys, then all for values."""
    ours = {}
    for name, shape in expected.items():
        rows = [state[f"{part}_{their_name(name)}"].float().reshape(shape) for part in PARTS for state in states]
        ours[f"0.{name}"] = torch.stack(rows)
    logits = [[state[f"{part}_gate_logit"].float() for state in states] for part in PARTS]
    ours["0.gate.logit"] = torch.stack([torch.stack(row) for row in logits])[..., None]
    return ours


def unstacked(state: Mapping[str, Tensor], place: int, num_layers: int) -> dict[str, Tensor]:
    """The network of one layer, its temperature aside.

    Args:
        state: of our fusers.
        place: of the layer among those that are mapped.
        num_layers: how many are.
    """
    theirs = {}
    for p, part in enumerate(PARTS):
        theirs[f"{part}_gate_logit"] = state["0.gate.logit"][p, place, 0]
        for name, tensor in state.items():
            name = name.removeprefix("0.")
            if not name.startswith("gate."):
                row = tensor[p * num_layers + place]
                theirs[f"{part}_{their_name(name)}"] = row[0] if is_vector(name) else row
    return theirs
