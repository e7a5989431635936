"""A text that a sharer has read, as a file: what the mapper made of it, for the receiver that it was made for.

It is a safetensors file with the tensors of `mapper.handed.pack`; its metadata say what they are checked against before use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.files import check_json, checked, json_text, whole
from c2c_lightning.formats.fuser_folder import weights_digest, without_statistics
from c2c_lightning.mapper import Handed

FORMAT, KEY, DIGEST = 1, "c2c_lightning_text", "digest"
MAKE = "python -m c2c_lightning read --fuser FUSER --text TEXT --out {}"


class Maker(TypedDict):
    """A model or mapper that a cache file was made with."""

    name: str
    fingerprint: str


class Makers(TypedDict):
    """The receiver, the sharer that read the text (none where only the receiver is loaded), and the mapper."""

    receiver: Maker
    sharer: NotRequired[Maker]
    mapper: Maker


class Meta(TypedDict):
    """What a cache file says of itself."""

    format: int
    made_with: Makers
    text: str  # its SHA-256
    num_tokens: int
    bits: Literal[32, 16, 8, 4]
    shape: list[int]  # (2, L, K, H, D) of the entries


class Cached:
    """A text that was read once, by `python -m c2c_lightning read`, to be given as `context` any number of times.

    The file is read when it is first used, and kept.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self._read: tuple[Meta, Handed] | None = None

    def handed(self, makers: Mapping[str, Maker]) -> Handed:
        """What was handed over, checked.

        Args:
            makers: those that are to answer from it; see `Communicator.made_with`.

        Raises:
            UserError: the file is missing, damaged or none of ours, or was made by another model or mapper.
        """
        if self._read is None:
            self._read = read_cache(self.path)
        meta, handed = self._read
        for part, maker in makers.items():
            made_with = meta["made_with"][part]
            if made_with["fingerprint"] != maker["fingerprint"]:
                theirs, own = (f"{each['name']} ({each['fingerprint'][:8]})" for each in (made_with, maker))
                raise UserError(
                    f"cache file {self.path} was made with {part} {theirs}, and this {part} is {own}: answer with the fuser "
                    f"that read the text, or read it again: {MAKE.format(self.path)}"
                )
        return handed


def mapper_of(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Maker:
    """The mapper's name and digest, from a fuser's config and weights."""
    weights = {name: state[name] for name in without_statistics(state) if name.startswith("mapper.")}
    return Maker(name=config["mapper"]["class_path"].rpartition(".")[2], fingerprint=weights_digest({}, weights))


def write_cache(path: Path, packed: dict[str, Tensor], meta: Meta) -> None:
    """Writes a cache file, as a whole or not at all; a UserError if it cannot be written."""
    tensors = {name: tensor.contiguous() for name, tensor in packed.items()}
    metadata = {KEY: json_text(meta, indent=None), DIGEST: weights_digest(meta, tensors)}
    with whole(path) as unfinished:
        unfinished.write_bytes(save(tensors, metadata))  # save_file's are for their owner alone


def read_cache(path: Path) -> tuple[Meta, Handed]:
    """A cache file, checked; see `Cached.handed`."""
    where, again = f"cache file {path}", f"Make it again: {MAKE.format(path)}"
    if not path.is_file():
        raise UserError(f"{where}: no such file. Name one that this makes: {MAKE.format(path)}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if KEY in metadata else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{where} is damaged, cut off or no cache file: {first_line(error)}. {again}") from error
    if KEY not in metadata:
        raise UserError(f"{where} has tensors, but not of a text: c2c_lightning read did not write it. {again}")
    found = check_json(metadata[KEY], dict[str, Any], where, again)
    if found.get("format") != FORMAT:
        raise UserError(f"{where} has format {found.get('format')!r}; this version reads format {FORMAT}. {again}")
    if metadata.get(DIGEST) != weights_digest(found, tensors):
        raise UserError(f"{where} is damaged: its content does not have the digest that was written with it. {again}")
    meta = checked(found, Meta, where, again)
    return meta, Handed.of(tensors, meta["bits"], meta["num_tokens"])
