"""What frozen models make of prompts, kept on disk: data that are seen more than once are prefilled once.

A shard holds one model's KV stack of one prompt. Its key says which token ids were read, by which weights, and how:
whatever leads to the same ids (another tokenizer, template or alignment) reads the same shard, and whatever does not,
another one.

Every prompt is read alone and without padding. So a shard's content depends on its key and not on the batch in which
a prompt came first, and nothing that happens to the store, such as a lost shard, changes a later result by a bit.
Against a plain prefill of a padded batch results differ by rounding.

Dimensions: L layers, B batch, H kv heads, N tokens, D head_dim.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import final
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, DynamicLayer, PreTrainedModel

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import PART_NAMES
from c2c_lightning.models.cache import prefill
from c2c_lightning.models.identity import fingerprint_in_memory
from c2c_lightning.models.loading import is_compiled, is_sharded
from c2c_lightning.models.shards import Shards


@final  # so that a configuration gives its arguments and no class_path
class PromptStore:
    """Prefills by reading back what was computed before, in this process or in any other.

    Args:
        folder: where shards are kept; it is made at first use. Runs and trials that name the same one share it.
        budget_gb: what all shards together may take, in GB (10^9 bytes). Give room for all prompts: see `Shards` for
            what happens when there is not.

    Raises:
        UserError: the budget is not positive.
    """

    def __init__(self, folder: str, budget_gb: float = 50.0):
        if not 0 < budget_gb < math.inf:
            raise UserError(f"model.prompt_store.budget_gb is {budget_gb}: give a positive number of GB.")
        self.folder, self.budget_gb = folder, budget_gb
        self._fingerprints: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()

    def check(self, models: Iterable[PreTrainedModel]) -> None:
        """Sees to it that models can be read through this store, before anything begins.

        Raises:
            UserError: the folder cannot be written to, or a model is sharded.
        """
        for model in models:
            self.fingerprint(model)
        _ = self.shards

    @torch.no_grad()
    def prefill(self, model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor) -> DynamicCache:
        """The model's cache after reading left-padded prompts; padding has zeros in it.

        Raises:
            UserError: as `check`.
        """
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
        """Tells models apart by all that they compute with, whatever they are called and wherever they came from.

        Raises:
            UserError: the model is sharded.
        """
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
    def shards(self) -> Shards:
        try:
            return Shards(Path(self.folder).expanduser(), int(self.budget_gb * 1e9))
        except OSError as error:
            raise UserError(
                f"model.prompt_store.folder is {self.folder!r}, which cannot be written to ({error}): name a folder "
                "that can, on a disk with room."
            ) from error

    def _stack(self, model: PreTrainedModel, computed_by: str, ids: Sequence[int]) -> dict[str, Tensor]:
        """Keys and values (L, H, N, D) of one prompt, on the CPU."""
        key = hashlib.sha256(f"{computed_by} {ids}".encode()).hexdigest()
        stack = self.shards.get(key)
        if stack is None:
            ids_1N = torch.tensor([ids], device=model.device)
            layers = prefill(model, ids_1N, torch.ones_like(ids_1N)).layers
            stack = {part: torch.cat([getattr(layer, part) for layer in layers]).cpu() for part in PART_NAMES}
            self.shards.put(key, stack)
        return stack


def circumstances(model: PreTrainedModel) -> str:
    """What else than model and prompt has a say in what comes out, if only by rounding."""
    device = model.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    kernels = f"{model.config._attn_implementation} {torch.get_float32_matmul_precision()} {is_compiled(model)}"
    return f"{device} {autocast} {kernels} torch {torch.__version__} transformers {transformers.__version__}"


def pad_stacks(stacks: Sequence[Tensor | None], width: int) -> Tensor:
    """Stacks (L, H, N, D) of several prompts as one (L, B, H, width, D), padded on the left; None for no tokens."""
    some = next(stack for stack in stacks if stack is not None)
    num_layers, heads, _, head_dim = some.shape
    padded = some.new_zeros(num_layers, len(stacks), heads, width, head_dim)
    for row, stack in enumerate(stacks):
        if stack is not None:
            padded[:, row, :, width - stack.shape[2] :] = stack
    return padded
