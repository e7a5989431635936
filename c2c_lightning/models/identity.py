"""What a frozen model is known by: what its folder holds, or what it computes with in memory. Never its name.

A model that was trained on and saved under its old name is another one, and a copy elsewhere is the same.
xxh3 reads as fast as memory does (8 GB/s on one core from the file cache), so nothing less than every byte is hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from xxhash import xxh3_128

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.models.loading import locate

# What transformers reads of a model: configurations, weights, tokenizer and chat template.
READ_FROM_A_FOLDER = ("*.json", "*.safetensors", "*.jinja", "*.bin", "*.model", "merges.txt", "vocab.txt")
# Where a configuration came from, which changes nothing of what is computed with it.
ORIGIN = ("_name_or_path", "transformers_version")


def fingerprint_of_files(name: str | os.PathLike[str]) -> str:
    """Of all that decides what a model (folder or hub id) answers: configuration, weights, tokenizer, template.

    Nothing is loaded. Files of a hub id are fetched.

    Raises:
        UserError: a file cannot be read.
    """
    location = locate(name)
    digest = xxh3_128()
    try:
        if not Path(location).is_dir():
            location = snapshot_download(location, allow_patterns=[*READ_FROM_A_FOLDER])
        for file in sorted({file for pattern in READ_FROM_A_FOLDER for file in Path(location).glob(pattern)}):
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, xxh3_128).hexdigest()
                digest.update(f"{file.name} {content}\n".encode())
    except (OSError, ValueError) as error:  # every error of the hub client is one of them
        raise UserError(f"model {str(name)!r} cannot be read: {first_line(error)}") from error
    return digest.hexdigest()


def fingerprint_in_memory(model: PreTrainedModel) -> str:
    """Of a model's configuration, weights and buffers as they are now, converted or changed since they were read."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in ORIGIN}
    digest = xxh3_128(f"{type(model).__qualname__} {json.dumps(config, sort_keys=True, default=str)}".encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
