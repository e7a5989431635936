"""A saved fuser: a folder with config.json, which names receiver and sharers, and model.safetensors; or a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.files import read_json, whole_folder
from c2c_lightning.formats.checkpoint import (
    FUSERS,
    is_sharded,
    must_be_consolidated,
    read_checkpoint,
    refuse_infinite,
)
from c2c_lightning.formats.config import FORMAT, check_config, located, renamed_models
from c2c_lightning.formats.published import read_published, write_published
from c2c_lightning.formats.published_files import WEIGHTS_FOLDER, is_published
from c2c_lightning.fuser.ridge import STATISTICS
from c2c_lightning.models import ChatConfig
from c2c_lightning.models.loading import locate
from c2c_lightning.runs import FUSER, RUNS, begun, checkpoints

CONFIG, WEIGHTS, CHECKPOINT = "config.json", "model.safetensors", ".ckpt"
HUB_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)+")
Saved = tuple[dict[str, Any], dict[str, Tensor]]  # config and weights


def write_fuser_folder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes config and weights, neither of which is ever seen beside an older one of the other, or raises a UserError."""
    with whole_folder(folder) as unfinished:
        text = json.dumps({"format": FORMAT, **config}, indent=2)
        (unfinished / CONFIG).write_text(text + "\n", encoding="utf-8")
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, unfinished / WEIGHTS)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error
        # safetensors makes files that only their owner may read.
        (unfinished / WEIGHTS).chmod((unfinished / CONFIG).stat().st_mode)


def read_fuser(name: str, receiver: str | None = None, sharers: Sequence[str] | None = None) -> Saved:
    """Config and weights of a saved fuser, checked; one in the published format is read into ours.

    Args:
        name: a folder, a run's folder, a hub id, or a checkpoint file.
        receiver: folder or hub id of the receiver, in place of the one that the fuser names.
        sharers: the same of the sharers.

    Raises:
        UserError: a file is missing or damaged, and which.
    """
    if name.endswith(CHECKPOINT):
        config, state = _read_checkpoint(Path(name).expanduser())
        return renamed_models(config, receiver, sharers), state
    folder = find_fuser(name)
    if is_published(folder):
        if sharers is not None and len(sharers) != 1:
            raise UserError(f"sharers is {sharers!r}: a published fuser has one.")
        return read_published(folder, receiver, sharers[0] if sharers else None)
    if not (folder / CONFIG).exists() and (folder / FUSER).is_dir():
        folder = folder / FUSER  # a run's folder
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"fuser {name!r} has no {file}: was it saved with save_pretrained?")
    config = read_json(folder / CONFIG, dict[str, Any], f"fuser {name!r}:")
    if config.get("format") not in (1, FORMAT):
        raise UserError(
            f"fuser {name!r}: its {CONFIG} has format {config.get('format')!r}; this version reads formats 1 and {FORMAT}."
        )
    config = check_config(config, f"fuser {name!r}: {folder / CONFIG}")
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"fuser {name!r}: its {WEIGHTS} is damaged: {first_line(error)}") from error
    refuse_infinite(state.items(), f"fuser {name!r}")
    return renamed_models(config, receiver, sharers), state


def _read_checkpoint(file: Path) -> Saved:
    """Config and weights from what Lightning saved in training."""
    if is_sharded(file):
        raise UserError(f"fuser '{file}' {must_be_consolidated(file)}")
    if not file.is_file():
        raise UserError(f"fuser '{file}': no such checkpoint file.")
    checkpoint = read_checkpoint(file, f"fuser '{file}'")
    state = {name.removeprefix(FUSERS): tensor for name, tensor in checkpoint["state_dict"].items()}
    return checkpoint["c2c"], without_statistics(state)


def without_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a fuser needs to fuse."""
    return {name: tensor for name, tensor in state.items() if f".{STATISTICS}." not in name}


def newest_fuser(runs: Path = RUNS) -> Path:
    """The fuser of the run that was begun last, or its newest whole checkpoint if it has not ended.

    Raises:
        UserError: no run has either.
    """
    for folder in begun(runs.glob("*")):
        for fuser in (folder / FUSER, *checkpoints(folder)):
            if fuser.exists():
                try:
                    read_fuser(str(fuser))
                except UserError as error:
                    print(f"{error} Looking for an older one.")
                else:
                    return fuser
    raise UserError(f"model.fuser is last, but {runs}/ has no run with a fuser: train one, or name a fuser's folder.")


def named(name: str | Path) -> str:
    """A fuser's name as it stands, `last` aside, which is the newest run's."""
    return str(newest_fuser() if name == "last" else name)


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


def fingerprint(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """The same for the same fuser, wherever it and its models lie and in whatever form."""
    keys = ("format", "alignment", "template_kwargs", "layer_map", "layers", "gate", "fuser")
    counted = {key: config[key] for key in keys}
    if "mapper" in config:
        counted["mapper"] = config["mapper"]
    if config["chat"] != asdict(ChatConfig()):  # fusers of before had no other
        counted["chat"] = config["chat"]
    return weights_digest(counted, state)


def weights_digest(said: Any, state: Mapping[str, Tensor]) -> str:
    """The same for the same tensors, on whatever device, and the same that is said of them, as JSON."""
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for tensor_name in sorted(state):
        digest.update(tensor_name.encode())
        digest.update(state[tensor_name].detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def convert(source: str, out: str, receiver: str | None = None, sharer: str | None = None) -> None:
    """Converts a fuser, bit for bit, whichever of the two formats it has.

    Args:
        source: the fuser: a folder or a hub id, which may go on with a folder in it, a checkpoint, or `last`.
        out: the folder to write, which must not be there yet.
        receiver: folder or hub id, where the fuser does not name it, or it is no longer there.
        sharer: the same.

    Raises:
        UserError: the fuser is damaged or does not fit the models, or the published format has no such fuser.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise UserError(f"--out {out} is there already: name a folder that is not.")
    source = named(source)
    config, state = read_fuser(source, receiver, sharer and [sharer])
    if not source.endswith(CHECKPOINT) and is_published(find_fuser(source)):
        write_fuser_folder(folder, config, state)
        print(f"{folder}: fuser of ours, ready for test --model.fuser {folder}")
    else:
        write_published(folder, located(config, source), state)
        print(f"{folder}: published format, its projectors in {folder / WEIGHTS_FOLDER}")
