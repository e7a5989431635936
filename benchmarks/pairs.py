"""Models of true shapes with random weights, and batches of random tokens: nothing is downloaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError, meant
from c2c_lightning.fuser import C2CFuser, GateConfig
from c2c_lightning.models import Batch, FrozenModels
from c2c_lightning.models.batch import SharerPrompt


def shape(
    kind: type[Qwen2Config | Qwen3Config],
    layers: int,
    width: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    **more: int,
) -> Qwen2Config | Qwen3Config:
    return kind(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        **more,
    )


# The first two are the published models'; `-mid` is where matmuls dominate on a CPU, `-tiny` ends within seconds.
MODELS = {
    "qwen3-0.6b": shape(Qwen3Config, 28, 1024, 3072, 16, 8, 151_936, head_dim=128),
    "qwen2.5-0.5b": shape(Qwen2Config, 24, 896, 4864, 14, 2, 151_936),
    "qwen3-mid": shape(Qwen3Config, 8, 512, 1536, 8, 4, 32_000, head_dim=64),
    "qwen2-mid": shape(Qwen2Config, 10, 448, 1344, 7, 1, 32_000),
    "qwen3-tiny": shape(Qwen3Config, 4, 128, 384, 4, 2, 4_000, head_dim=32),
    "qwen2-tiny": shape(Qwen2Config, 5, 96, 288, 4, 1, 4_000),
}
MID = "qwen3-mid+qwen2-mid"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_model(name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A frozen model of the shape that `MODELS` has under a name."""
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise UserError(f"--pair names {name!r}. {meant(name, MODELS, f'Give two of {known}, with + between.')}")
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(MODELS[name], dtype=dtype).eval()


class NoTokenizer:
    """Stands for the tokenizer of a random model, which is given token ids and never ends a turn."""

    pad_token_id, eos_token_id = 0, -1

    def get_vocab(self) -> dict[str, int]:
        return {}


def random_communicator(pair: str, hidden: int, dtype: str, device: str, **kwargs: Any) -> Communicator:
    """A communicator between random models, its fuser as in the paper but for its width.

    Args:
        pair: `receiver+sharer`, names from `MODELS`.
        hidden: width of the fuser.
        dtype: of the frozen models, `fp32` or `bf16`.
        device: where to.
        **kwargs: see `Fusers`.
    """
    receiver, _, sharer = pair.partition("+")
    models = [random_model(name, DTYPES[dtype], device) for name in (receiver, sharer)]
    aligner = SimpleNamespace(receiver=NoTokenizer(), sharers=[NoTokenizer()], pad_ids=[0, 0])
    gate = GateConfig(noise="logistic", init=1.0)

    def fuser(*shapes: Any) -> C2CFuser:
        return C2CFuser(*shapes, hidden=hidden, dropout=0.0)

    frozen = FrozenModels(models[0], models[1:], aligner)
    communicator = Communicator.fresh(frozen, **{"fuser": fuser, "gate": gate, **kwargs})
    return communicator.to(device).train()


def random_batch(communicator: Communicator, size: int, prompt: int, response: int, seed: int = 0) -> Batch:
    """Prompts and responses without padding, every receiver token opposite the sharer's of the same place."""
    generator = torch.Generator().manual_seed(seed)
    models = [communicator.models.receiver, *communicator.models.sharers]
    vocabulary = min(model.config.vocab_size for model in models)
    ids = torch.randint(vocabulary, (size, prompt + response), generator=generator).to(models[0].device)
    mask = torch.ones_like(ids)
    positions = torch.arange(prompt - 1, device=ids.device).expand(size, -1)
    read = [SharerPrompt(ids[:, :prompt], mask[:, :prompt], positions) for _ in communicator.models.sharers]
    return Batch(ids[:, :prompt], mask[:, :prompt], read, ids[:, prompt:], mask[:, prompt:])
