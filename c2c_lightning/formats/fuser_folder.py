"""A saved fuser: config.json, which names receiver and sharers, and model.safetensors; or a run's checkpoint."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.formats.published import read_published
from c2c_lightning.formats.published_files import is_published
from c2c_lightning.fuser import Fuser, FuserFactory, Gate, GateConfig, KVShape
from c2c_lightning.fuser.closed_form import STATISTICS
from c2c_lightning.models.loading import locate

FORMAT = 2  # format 1 had matrices as (out, in); see fuser/stacked.py
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CHECKPOINT, CHECKPOINT_PREFIX = ".ckpt", "communicator.fusers."
HUB_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)+")
KEYS = ("receiver", "sharers", "alignment", "template_kwargs", "layer_map", "layers", "gate", "fuser")


def write_fuser_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)


def read_fuser(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a saved fuser: a folder, a run's folder, a hub id, or a checkpoint file.

    A fuser in the published format (see published.py) is read into ours.

    Raises:
        UserError: a file is missing or damaged, and which.
    """
    if name.endswith(CHECKPOINT):
        return _read_checkpoint(Path(name).expanduser())
    folder, parts = find_fuser(name), []
    if is_published(folder):
        return read_published(folder)
    if not (folder / CONFIG).exists() and (folder / "fuser").is_dir():
        folder = folder / "fuser"  # a run's folder
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"fuser {name!r} has no {file}: was it saved with save_pretrained?")
    for file, parse in ((CONFIG, _load_config), (WEIGHTS, load_file)):
        try:
            parts.append(parse(folder / file))
        except (ValueError, SafetensorError) as error:  # bad JSON and bad UTF-8 are ValueErrors
            raise UserError(f"fuser {name!r}: its {file} is damaged: {error}") from error
    config, state = parts
    missing = [key for key in KEYS if key not in config]
    if config.get("format") not in (1, FORMAT) or missing:
        raise UserError(
            f"fuser {name!r}: its {CONFIG} has format {config.get('format')!r} and lacks {missing}; "
            f"this version reads formats 1 and {FORMAT}."
        )
    if isinstance(config["layer_map"], dict):
        config["layer_map"] = {int(r): s for r, s in config["layer_map"].items()}
    return config, state


def without_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a fuser needs to fuse."""
    return {name: tensor for name, tensor in state.items() if f".{STATISTICS}." not in name}


def find_fuser(name: str) -> Path:
    """The folder of a fuser, fetched from the hub if it is a hub id.

    Raises:
        UserError: it is neither.
    """
    names = name.split("/")
    if len(names) > 2 and HUB_NAME.fullmatch(name) and not Path(name).is_dir():
        repository, within = "/".join(names[:2]), "/".join(names[2:])
    else:
        repository, within = locate(name, "fuser"), ""
    if Path(repository).is_dir():
        return Path(repository)
    # A published fuser's recipe may stand in the folder above.
    places = [f"{place}/" if place else "" for place in (within, "/".join(names[2:-1]))]
    wanted = [f"{place}{file}" for place in places for file in (CONFIG, WEIGHTS, "projector_*", "final/projector_*")]
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted)) / within
    except (OSError, ValueError) as error:  # every error of the hub client is one of them
        reason = first_line(error)
        raise UserError(f"fuser {name!r} is neither a folder nor to be had from the hub: {reason}") from error


def fingerprint(name: str) -> str:
    """The same for the same fuser, wherever it lies and in whatever form."""
    config, state = read_fuser(name)
    digest = hashlib.sha256(json.dumps({key: config[key] for key in KEYS}, sort_keys=True).encode())
    for tensor_name in sorted(state):
        digest.update(tensor_name.encode())
        digest.update(state[tensor_name].reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether a checkpoint is a folder into which every rank wrote its part."""
    return (path / ".metadata").exists()


def must_be_consolidated(path: Path) -> str:
    return f"is sharded: make it one file by python -m c2c_lightning consolidate --checkpoint {path}"


def _read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights from what Lightning saved in training."""
    if is_sharded_checkpoint(file):
        raise UserError(f"fuser '{file}' {must_be_consolidated(file)}")
    if not file.is_file():
        raise UserError(f"fuser '{file}': no such checkpoint file.")
    try:
        checkpoint = torch.load(file, weights_only=True, map_location="cpu")
        config = {"format": checkpoint["c2c"].get("format", 1), **{key: checkpoint["c2c"][key] for key in KEYS}}
        state = checkpoint["state_dict"]
    except Exception as error:  # zipfile, pickle and torch each have their own
        reason = type(error).__name__
        raise UserError(f"fuser '{file}': the file is damaged, or not a checkpoint of ours ({reason}).") from error
    return config, without_statistics({name.removeprefix(CHECKPOINT_PREFIX): t for name, t in state.items()})


def _load_config(file: Path) -> dict[str, Any]:
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"it holds a {type(config).__name__}, not an object")
    return config


def import_fuser(spec: dict[str, Any], name: str) -> FuserFactory:
    """The fuser class that a config.json names, with its sizes filled in."""
    module, _, attribute = spec["class_path"].rpartition(".")
    try:
        fuser = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"fuser {name!r} is a {spec['class_path']}, which cannot be imported: {error}") from error
    if not (isinstance(fuser, type) and issubclass(fuser, Fuser)):
        raise UserError(f"fuser {name!r} is a {spec['class_path']}, which is no subclass of Fuser.")
    try:
        with torch.device("meta"):
            fuser(KVShape(1, 1, 1), KVShape(1, 1, 1), Gate(GateConfig(), [0], 1), **spec["init_args"])
    except TypeError as error:
        raise UserError(f"fuser {name!r}: its {CONFIG} does not fit {spec['class_path']}: {error}") from error
    return functools.partial(fuser, **spec["init_args"])
