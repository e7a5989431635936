"""What frozen models make of prompts, kept on disk: data that are seen more than once are prefilled once.

An entry holds one model's KV stack of one prompt. Its key says which token ids were read, by which weights, and how:
whatever leads to the same ids (another tokenizer, template or alignment) reads the same entry, and whatever does not,
another one.

Every prompt is read alone and without padding. So an entry's content depends on its key and not on the batch in which
a prompt came first, and nothing that happens to the store, such as a lost entry, changes a later result by a bit.
Against a plain prefill of a padded batch results differ by rounding.

`diskcache` keeps the entries: an index in SQLite and a file for each, for any number of processes at once.

Dimensions: L layers, B batch, H kv heads, N tokens, D head_dim.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
import transformers
from diskcache import Cache, Disk, Timeout
from diskcache.core import EVICTION_POLICY, MODE_BINARY
from safetensors.torch import load, save
from torch import Tensor
from transformers import DynamicCache, DynamicLayer, PreTrainedModel
from xxhash import xxh3_128

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import PART_NAMES
from c2c_lightning.models.cache import prefill
from c2c_lightning.models.identity import fingerprint_in_memory
from c2c_lightning.models.loading import is_compiled, is_sharded

log = logging.getLogger(__name__)

# The folder of the entries in a store's folder; another name whenever older entries cannot be read any more.
ENTRIES = "entries-2"
# Seconds after its last use in which an entry expires: none does, but its time of expiry tells of its last use.
FOREVER = 10 * 365 * 86400.0
FILLED_AGAIN = 0.9  # of the budget: room is made for some entries at a time
UNUSED_SINCE = "unused-since"


class PlainBytes(Disk):
    """Reads bytes only: a stranger's pickle in the folder is never opened."""

    def fetch(self, mode: int, filename: str, value: Any, read: bool) -> Any:
        if mode != MODE_BINARY:
            raise OSError(f"{filename} was not written here")  # to a reader: not there
        return super().fetch(mode, filename, value, read)


@final  # so that a configuration gives its arguments and no class_path
class PromptStore:
    """Prefills by reading back what was computed before, in this process or in any other of this machine.

    When there is no more room, entries that nobody has used since this process began give way, those that were used
    longest ago first. If there are none, no more are written: where all entries are needed again and again, to
    replace one by another gains nothing.

    Args:
        folder: where entries are kept; it is made at first use. Runs and trials that name the same one share it.
        budget_gb: what all entries together may take, in GB (10^9 bytes). Give room for all prompts.

    Raises:
        UserError: the budget is not positive.
    """

    def __init__(self, folder: str, budget_gb: float = 50.0):
        if not 0 < budget_gb < math.inf:
            raise UserError(f"model.prompt_store.budget_gb is {budget_gb}: give a positive number of GB.")
        self.folder, self.budget_gb = folder, budget_gb
        self.writes, self.damaged = True, 0
        self._fingerprints: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()

    def check(self, models: Iterable[PreTrainedModel]) -> None:
        """Raises a UserError if the folder cannot be written to, or a model is sharded."""
        for model in models:
            self.fingerprint(model)
        _ = self.entries

    @torch.no_grad()
    def prefill(self, model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor) -> DynamicCache:
        """The model's cache after reading left-padded prompts; padding has zeros in it. Errors as of `check`."""
        if not mask_BN.any():
            return prefill(model, ids_BN, mask_BN)
        computed_by = f"{self.fingerprint(model)} {circumstances(model)}"
        prompts = [tuple(ids[mask].tolist()) for ids, mask in zip(ids_BN.cpu(), mask_BN.bool().cpu())]
        stacks = {prompt: self._stack(model, computed_by, prompt) for prompt in dict.fromkeys(prompts) if prompt}
        cache = DynamicCache()
        parts = [pad_stacks([stacks.get(p, {}).get(part) for p in prompts], ids_BN.shape[1]) for part in PART_NAMES]
        for keys, values in zip(*(part.to(ids_BN.device) for part in parts)):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache

    def fingerprint(self, model: PreTrainedModel) -> str:
        """Tells models apart by all that they compute with, whatever they are called and wherever they came from."""
        if model not in self._fingerprints:
            if is_sharded(model):
                raise UserError(
                    f"model.prompt_store is {self.folder!r}, and the frozen models are sharded (FSDP): all ranks gather "
                    "them together, so none can read a prompt back while another computes. Set model.prompt_store to "
                    "null, or trainer.strategy to ddp where the models fit on one device."
                )
            self._fingerprints[model] = fingerprint_in_memory(model)
        return self._fingerprints[model]

    @cached_property
    def entries(self) -> Cache:
        self.opened = time.time()
        EVICTION_POLICY[UNUSED_SINCE] = {
            "init": None,
            "get": None,  # reading takes no lock
            "cull": "SELECT {fields} FROM Cache WHERE expire_time < %f ORDER BY expire_time LIMIT ?"
            % (self.opened + FOREVER),
        }
        try:
            return Cache(
                str(Path(self.folder).expanduser() / ENTRIES),
                disk=PlainBytes,
                disk_min_file_size=0,
                eviction_policy=UNUSED_SINCE,
                cull_limit=0,  # room is made here, before an entry is written
            )
        except (OSError, sqlite3.Error, Timeout) as error:
            raise UserError(
                f"model.prompt_store.folder is {self.folder!r}, which cannot be written to ({error}): name a folder "
                "that can, on a disk with room, or empty it if it is damaged."
            ) from error

    def _stack(self, model: PreTrainedModel, computed_by: str, ids: Sequence[int]) -> dict[str, Tensor]:
        """Keys and values (L, H, N, D) of one prompt, on the CPU."""
        key = hashlib.sha256(f"{computed_by} {ids}".encode()).hexdigest()
        stack = self._get(key)
        if stack is None:
            ids_1N = torch.tensor([ids], device=model.device)
            layers = prefill(model, ids_1N, torch.ones_like(ids_1N)).layers
            stack = {part: torch.cat([getattr(layer, part) for layer in layers]).cpu() for part in PART_NAMES}
            self._put(key, stack)
        return stack

    def _get(self, key: str) -> dict[str, Tensor] | None:
        """What stands under a key; None if it is missing or damaged."""
        try:
            data, expires = self.entries.get(key, expire_time=True)
            if data is None:
                return None
            stack = load(data[16:]) if data[:16] == checksum(key, data[16:]) else None
            if stack is not None and expires < self.opened + FOREVER:
                self.entries.touch(key, expire=FOREVER)
        except Timeout:  # others kept the index busy: nobody is told of this use
            return stack
        except sqlite3.Error as error:
            self._stop_writing(f"its index cannot be read ({error})")
            return None
        if stack is None:
            if not self.damaged:
                log.warning("an entry of %s is damaged: it is computed anew, as all others that are.", self.folder)
            self.damaged += 1
        return stack

    def _put(self, key: str, stack: dict[str, Tensor]) -> None:
        """Keeps a stack under a key, if there is room."""
        if not self.writes:
            return
        data = save(stack)
        try:
            # All writing is done under the index's lock, so that processes together keep to the budget.
            with self.entries.transact():
                if self._has_room(len(data)):
                    self.entries.set(key, checksum(key, data) + data, expire=FOREVER)
                    return
            self._stop_writing(f"its {self.budget_gb:g} GB are full")
            self.entries.check(fix=True)  # takes away files that processes which were killed have left
        except (OSError, sqlite3.Error, Timeout) as error:
            self._stop_writing(str(error) or type(error).__name__)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes may be added, after others have given way if they can."""
        budget = int(self.budget_gb * 1e9)
        if budget - size < self.entries.volume() and size < budget:
            self.entries.reset("size_limit", min(int(FILLED_AGAIN * budget), budget - size))
            self.entries.cull()
        return self.entries.volume() + size <= budget

    def _stop_writing(self, reason: str) -> None:
        if self.writes:
            log.warning(
                "%s takes no more of this process: %s. What is not there is computed anew.", self.folder, reason
            )
        self.writes = False


def checksum(key: str, data: bytes) -> bytes:
    """Of a key and what stands under it: an entry that changed places is not another key's."""
    return xxh3_128(key.encode() + data).digest()


def circumstances(model: PreTrainedModel) -> str:
    """What else than model and prompt has a say in what comes out, if only by rounding."""
    device = model.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    kernels = f"{model.config._attn_implementation} {torch.get_float32_matmul_precision()} {is_compiled(model)}"
    return f"{device} {autocast} {kernels} torch {torch.__version__} transformers {transformers.__version__}"


def pad_stacks(stacks: Sequence[Tensor | None], width: int) -> Tensor:
    """Stacks (L, H, N, D) of several prompts as one (L, B, H, width, D), padded on the left; None for no tokens."""
    nothing = next(stack for stack in stacks if stack is not None)[:, :, :0]
    stacks = [nothing if stack is None else stack for stack in stacks]
    return torch.stack([F.pad(stack, (0, 0, width - stack.shape[2], 0)) for stack in stacks], dim=1)
