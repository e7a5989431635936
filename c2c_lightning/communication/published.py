"""Fusers as github.com/thu-nics/C2C publishes them, read into ours and written back, bit for bit.

One of theirs is a folder with a network for each receiver layer (`projector_{i}.pt`, a state_dict, and
`projector_{i}.json`, its sizes) and `projector_config.json`, which says what feeds what; the folder above has the
recipe, `config.json`. Ours holds all of that stacked. What has no place in ours, such as dtypes, is kept word for
word under `published` in its config.json, so that an export gives back what was imported.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2c_lightning.communication.layer_map import map_layers
from c2c_lightning.communication.models import kv_shape, load_config
from c2c_lightning.errors import UserError, first_line, meant
from c2c_lightning.fuser import C2CFuser, Gate, GateConfig, KVShape

PUBLISHED = "published"  # the key in our config.json
CLASS = "C2CProjector"
OURS = "c2c_lightning"  # the section of a recipe in which an export says what the format has no place for
MAP_FILE, RECIPE_FILE, WEIGHTS_FOLDER = "projector_config.json", "config.json", "final"
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
# Their word for a size of ours, and their default.
SIZES = {"hidden": ("hidden_dim", 1024), "intermediate": ("intermediate_dim", 1024), "num_layers": ("num_layers", 3)}
DROPOUT = ("dropout", 0.1)
GATE = {"initial_temperature": 1.0, "final_temperature": 0.001, "anneal_steps": 1929}
SHAPES = ("source_dim", "target_dim", "source_num_heads", "target_num_heads")
INIT_ARGS = {*SHAPES, *(theirs for theirs, _ in SIZES.values()), DROPOUT[0], *GATE, "dtype"}
OWN_KEYS = ("alignment", "template_kwargs", "gate")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_published(folder: Path) -> bool:
    """Whether a folder holds a fuser in the published format, by itself or in its `final/`."""
    return any((place / MAP_FILE).is_file() for place in (folder, folder / WEIGHTS_FOLDER))


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
    recipe = read_json(folder.parent / RECIPE_FILE) if (folder.parent / RECIPE_FILE).is_file() else None
    models = dict(recipe.get("model") or {}) if recipe else {}
    receiver, sharer = receiver or models.get("base_model"), sharer or models.get("teacher_model")
    if not receiver or not sharer:
        raise UserError(
            f"{folder.parent / RECIPE_FILE} does not say which models it was trained between (model.base_model, "
            "model.teacher_model): name them with convert --receiver ... --sharer ..."
        )
    layer_map, numbers, whole_map = read_map(folder / MAP_FILE)
    refuse_strangers(folder, set(numbers.values()))
    specs = {i: read_json(folder / f"projector_{i}.json") for i in sorted(set(numbers.values()))}
    init_args = common_init_args(specs, folder)
    fuser, gate, shapes = sizes(init_args, folder)
    for name, model, shape in (("sharer", sharer, shapes[0]), ("receiver", receiver, shapes[1])):
        fits(name, model, shape, folder)
    num_layers = [kv_shape(load_config(model)).num_layers for model in (receiver, sharer)]
    try:
        map_layers(layer_map, "all", *num_layers)
    except UserError as error:
        raise UserError(f"{folder / MAP_FILE}: {str(error).removeprefix('model.layer_map ')}") from error
    expected = parameter_shapes(fuser, shapes)
    states = {i: read_state(folder / f"projector_{i}.pt", expected) for i in specs}
    config = {
        "receiver": receiver,
        "sharers": [sharer],
        "alignment": "published",
        "template_kwargs": {"enable_thinking": False},
        "layer_map": layer_map,
        "layers": "all",
        "gate": asdict(gate),
        "fuser": {"class_path": f"{C2CFuser.__module__}.{C2CFuser.__qualname__}", "init_args": fuser},
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
    return config, stacked([states[numbers[layer]] for layer in layer_map], expected)


def write_published(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes a fuser of ours in the published format: recipe in the folder, the rest in its `final/`.

    Args:
        folder: must not exist.
        config: of ours.
        state: its weights.

    Raises:
        UserError: the published format has no such fuser, and why.
    """
    layer_map = publishable(config)
    kept = config.get(PUBLISHED) or native(config, layer_map, state)
    numbers = {layer: kept["projector_config"]["0"]["1"][str(layer)][0][1] for layer in layer_map}
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside where it is going to be, so that it is there as a whole or not at all.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
        whole = Path(unfinished) / "fuser"
        final = whole / WEIGHTS_FOLDER
        final.mkdir(parents=True)
        if kept["recipe"] is not None:
            write_json(whole / RECIPE_FILE, kept["recipe"])
        write_json(final / MAP_FILE, kept["projector_config"])
        for place, (_, i) in enumerate(numbers.items()):
            own = unstacked(state, place, len(numbers))
            own[TEMPERATURE] = torch.tensor(kept[TEMPERATURE][str(i)])
            own = {name: tensor.to(DTYPES[kept["dtypes"][str(i)][name]]).clone() for name, tensor in own.items()}
            torch.save(own, final / f"projector_{i}.pt")
            write_json(final / f"projector_{i}.json", kept["projectors"][str(i)])
        whole.rename(folder)


def publishable(config: Mapping[str, Any]) -> dict[int, int]:
    """The layer map of a fuser that the published format has.

    Raises:
        UserError: it has no such fuser.
    """
    gate = GateConfig(**config["gate"])
    ours = f"{C2CFuser.__module__}.{C2CFuser.__qualname__}"
    for is_wrong, what in (
        (config["fuser"]["class_path"] not in (ours, "c2c_lightning.fuser.C2CFuser"), "is no C2CFuser"),
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
            **{theirs: filled[ours] for ours, (theirs, _) in SIZES.items()},
            DROPOUT[0]: filled["dropout"],
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


C2C_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(C2CFuser).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


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


def sizes(init_args: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], GateConfig, tuple[KVShape, KVShape]]:
    """A fuser's sizes, its gate, and the shapes of sharer and receiver that it was made for (layers aside)."""
    fuser = {ours: init_args.get(theirs, default) for ours, (theirs, default) in SIZES.items()}
    fuser["dropout"] = init_args.get(*DROPOUT)
    fuser["evaluate_in"] = (init_args.get("dtype") or {}).get("value", "float32")
    first, last, steps = (init_args.get(name, default) for name, default in GATE.items())
    source_dim, target_dim, source_heads, target_heads = (init_args[name] for name in SHAPES)
    try:
        gate = GateConfig(noise="gumbel", init=0.0, temperature=(first, last), anneal_steps=steps)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder}: its projectors have a gate that is none: {first_line(error)}") from error
    return fuser, gate, (KVShape(1, source_heads, source_dim), KVShape(1, target_heads, target_dim))


def fits(name: str, model: str, shape: KVShape, folder: Path) -> None:
    """Raises a UserError if a model's cache is not of the shape that the fuser was made for."""
    has = kv_shape(load_config(model))
    if (has.num_kv_heads, has.head_dim) != (shape.num_kv_heads, shape.head_dim):
        raise UserError(
            f"{folder} was made for a {name} with {shape.num_kv_heads} kv heads of {shape.head_dim}, but {model} has "
            f"{has.num_kv_heads} of {has.head_dim}."
        )


def parameter_shapes(fuser: Mapping[str, Any], shapes: tuple[KVShape, KVShape]) -> dict[str, torch.Size]:
    """The shapes of one group of our parameters, by our name."""
    with torch.device("meta"):
        made = C2CFuser(*shapes, Gate(GateConfig(parts="keys"), [0], 1), **fuser)
    return {name: p[0].shape for name, p in made.named_parameters() if not name.startswith("gate.")}


def their_name(name: str) -> str:
    """The name, within a part, of a parameter of ours."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[prefix] + re.sub(r"norm$", "norm.weight", name.removeprefix(prefix))


def read_state(file: Path, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A network's tensors, checked.

    Raises:
        UserError: no plain tensors, or one is missing, surplus, or of another shape.
    """
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(f"{file} is damaged, or holds more than plain tensors: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{file} holds a {type(state).__name__} that is no state_dict of plain tensors.")
    # Ours have an axis of one where theirs are vectors.
    shapes = {
        f"{part}_{their_name(name)}": tuple(shape[1:] if shape[0] == 1 and is_vector(name) else shape)
        for part in PARTS
        for name, shape in expected.items()
    }
    shapes |= {f"{part}_gate_logit": () for part in PARTS} | {TEMPERATURE: ()}
    for name in (*(shapes.keys() - state.keys()), *(state.keys() - shapes.keys())):
        what = "lacks" if name in shapes else "has a surplus"
        raise UserError(f"{file} {what} {name}.")
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(f"{file}: {name} is {list(tensor.shape)}, and must be {list(shapes[name])}.")
        if tensor.dtype not in DTYPES.values():
            raise UserError(f"{file}: {name} is {tensor.dtype}, and must be one of {', '.join(DTYPES)}.")
    return state


def is_vector(name: str) -> bool:
    return name.endswith(("norm", "bias"))


def dtypes(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}


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
