"""What a saved fuser says of itself, checked, and the fusers that are made of it.

Fusers are built on the meta device first, so what does not fit is refused before anything is allocated.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import ConfigDict, Field, with_config
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError, first_line, meant
from c2c_lightning.files import checked
from c2c_lightning.fuser import Fuser, FuserFactory, Fusers, GateConfig, KVShape, LayerMap, Layers
from c2c_lightning.fuser.stacked import matrices, transposed
from c2c_lightning.mapper import Mapper
from c2c_lightning.models import Alignment, ChatConfig
from c2c_lightning.models.loading import kv_shape, load_config, locate

FORMAT = 2  # format 1, and the published one, has matrices as (out, in); see fuser/stacked.py
OURS = ("c2c_lightning.fuser.", "c2c_lightning.mapper.")
RENAME = (
    "Name them anew: Communicator.from_pretrained(..., receiver=..., sharers=[...]), --model.receiver and "
    "--model.sharers of test, --receiver and --sharers of lm-eval, --receiver and --sharer of convert."
)


class FuserSpec(TypedDict):
    class_path: str
    init_args: dict[str, Any]


@with_config(ConfigDict(extra="allow"))
class FuserConfig(TypedDict):
    """Of a fuser's config.json, and of a run's checkpoint."""

    format: NotRequired[int]
    receiver: Annotated[str, Field(min_length=1)]
    sharers: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    alignment: Alignment
    template_kwargs: dict[str, Any] | None
    chat: NotRequired[dict[str, Any]]
    layer_map: LayerMap
    layers: Layers
    gate: dict[str, Any]
    fuser: FuserSpec | None
    mapper: NotRequired[FuserSpec]


def check_config(said: Any, where: str) -> dict[str, Any]:
    """A `FuserConfig`, checked, with its format and its chat; its gate without defaults for what it does not say."""
    config = checked(said, FuserConfig, where)
    known = [field.name for field in fields(GateConfig)]
    for name in config["gate"].keys() - set(known):
        raise UserError(f"{where}: its gate has a {name!r}, which no gate has. {meant(name, known)}".rstrip())
    gate = checked(config["gate"], GateConfig, f"{where}: its gate")
    chat = checked(config.get("chat", {}), ChatConfig, f"{where}: its chat")
    kept = {"gate": {name: getattr(gate, name) for name in config["gate"]}, "chat": asdict(chat)}
    return {"format": 1} | config | kept


def renamed_models(config: dict[str, Any], receiver: str | None, sharers: Sequence[str] | None) -> dict[str, Any]:
    """The config with the models that a user names in place of its own; refused unless there is one for each sharer."""
    if sharers is not None and (isinstance(sharers, str) or len(sharers) != len(config["sharers"])):
        raise UserError(f"sharers is {sharers!r}: name {len(config['sharers'])}, for {', '.join(config['sharers'])}.")
    return config | {"receiver": receiver or config["receiver"], "sharers": list(sharers or config["sharers"])}


def located(config: dict[str, Any], fuser: str) -> dict[str, Any]:
    """The config with its models where `find_model` finds them."""
    sharers = [find_model(sharer, fuser) for sharer in config["sharers"]]
    return config | {"receiver": find_model(config["receiver"], fuser), "sharers": sharers}


def find_model(name: str, fuser: str) -> str:
    """A model that a fuser names: as it stands, or seen from the fuser's folder and those above it.

    A run that was moved together with its models so finds them by the relative paths of old.

    Raises:
        UserError: it can only be meant as a path, and nothing is there; says how to name another.
    """
    place = Path(fuser).expanduser()
    if place.exists() and not Path(name).expanduser().exists():
        for folder in (place.resolve(), *place.resolve().parents[:4]):
            if (folder / name).exists():
                return str(folder / name)
    try:
        locate(name)
    except UserError as error:
        raise UserError(f"fuser {fuser!r} was trained with a {str(error).rstrip('.')}. {RENAME}") from error
    return name


def make_fusers(
    config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, trust_remote_code: bool = False
) -> Fusers:
    """The fusers of a `FuserConfig`, its models found, with their weights.

    Args:
        config: what to make.
        state: the weights.
        name: of the fuser, for messages.
        trust_remote_code: whether a class that is not one of this package may be imported.

    Raises:
        UserError: a class that may not be imported or is no fuser, or weights that do not fit the models.
    """
    shapes = [kv_shape(load_config(model)) for model in (config["receiver"], *config["sharers"])]
    make = functools.partial(
        Fusers,
        shapes[0],
        shapes[1:],
        config["fuser"] and import_class(config["fuser"], Fuser, name, trust_remote_code),
        config["layer_map"],
        config["layers"],
        GateConfig(**config["gate"]),
        import_class(config["mapper"], Mapper, name, trust_remote_code) if "mapper" in config else None,
    )
    skeleton = on_meta(make, len(state), name)
    if config["format"] == 1:
        state = transposed(state, matrices(skeleton))
    wrong = mismatch(shapes_of(skeleton.state_dict()), shapes_of(state))
    if wrong:
        raise UserError(f"fuser {name!r} does not fit its models: {wrong}. {trained_with(config, shapes, state)}")
    fusers = make()
    fusers.load_state_dict(state)
    return fusers


def import_class(spec: FuserSpec, kind: type[nn.Module], name: str, trust_remote_code: bool = False) -> Any:
    """The class of a fuser or mapper that a config names, with its sizes filled in.

    Raises:
        UserError: the class is not one of this package and not to be trusted, or not of this kind.
    """
    path = spec["class_path"]
    module, _, attribute = path.rpartition(".")
    if not all(word.isidentifier() for word in path.split(".")) or not module:
        raise UserError(f"fuser {name!r} is a {path!r}, which is no import path of a class.")
    if not path.startswith(OURS) and not trust_remote_code:
        raise UserError(
            f"fuser {name!r} is a {path}, which is none of {OURS[0]}*: importing it would run code that came with the "
            "fuser or lies in this folder. If you trust it, say trust_remote_code."
        )
    if path.startswith(OURS):
        module = ".".join(path.split(".")[:2])  # whichever file of the package an earlier version had the class in
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise UserError(f"fuser {name!r} is a {path}, which cannot be imported: {first_line(error)}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"fuser {name!r} is a {path}, which is no subclass of {kind.__name__}.")
    return functools.partial(found, **spec["init_args"])


def on_meta(make: FuserFactory | functools.partial, most: int, name: str) -> Any:
    """A module without memory for its weights; refused if it cannot be made, or as soon as it has more than `most`."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise UserError(f"its config makes more than the {most} tensors that it has")

    hook = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # with sizes that are none a class may raise any
        raise UserError(f"fuser {name!r}: its config makes none: {first_line(error)}") from error
    finally:
        hook.remove()


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def mismatch(expected: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]]) -> str:
    """The first thing that is wrong with tensors, given their shapes by name; empty if nothing is."""
    for name in (*expected, *there):
        if name not in there:
            return f"it lacks {name}"
        if name not in expected:
            return f"it has a surplus {name}"
        if there[name] != expected[name]:
            return f"{name} is {list(there[name])}, and would have to be {list(expected[name])}"
    return ""


def trained_with(config: Mapping[str, Any], shapes: Sequence[KVShape], state: Mapping[str, Tensor]) -> str:
    logit = state.get("0.gate.logit")
    layers = f" on {logit.shape[1]} receiver layers" if logit is not None and logit.ndim == 3 else ""
    meets = [
        f"{model} with {shape.num_layers} layers, {shape.num_kv_heads} kv heads of {shape.head_dim}"
        for model, shape in zip((config["receiver"], *config["sharers"]), shapes)
    ]
    return (
        f"It was trained{layers} between {config['receiver']} and {', '.join(config['sharers'])} (layer_map "
        f"{config['layer_map']}, layers {config['layers']}), and meets {'; '.join(meets)}."
    )
