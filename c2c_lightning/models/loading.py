"""Loading frozen LMs and their tokenizers, and refusing those whose cache cannot be fused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.fuser import KVShape
from c2c_lightning.models.alignment import Aligner, Alignment

PROJECT = Path(__file__).parents[2]
CACHE_SIZES = {"num_attention_heads", "num_key_value_heads", "head_dim", "kv_lora_rank"}


def locate(name: str | os.PathLike[str], what: str = "model") -> str:
    """A folder's path, or else `name` itself as a hub id.

    Paths are looked up from the working folder and then from the project's, so that the built-in pair
    is found from anywhere.

    Raises:
        UserError: `name` can only be meant as a path, and nothing is there.
    """
    name = os.fspath(name)
    for folder in (Path(name).expanduser(), PROJECT / name):
        if folder.is_dir():
            return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{what} {name!r}: no such folder. Give a folder's path or a hub id (owner/name).")
    return name


def load_config(name: str) -> PreTrainedConfig:
    return _load(AutoConfig, name, "config.json")


def load_tokenizer(name: str) -> Tokenizer:
    """The model's tokenizer, with a chat template and a padding token.

    Raises:
        UserError: there is no tokenizer, it has no chat template or no end of turn, or it cannot tell
            which characters a token came from.
    """
    folder = Path(locate(name))
    if folder.is_dir() and not any(folder.glob("*tok*")) and not any(folder.glob("vocab*")):
        raise UserError(f"model {name!r} has no tokenizer in its folder (tokenizer.json).")
    tokenizer = _load(AutoTokenizer, name, "tokenizer.json, tokenizer_config.json")
    if not tokenizer.chat_template:
        raise UserError(
            f"model {name!r} has no chat template, so nobody can say how it reads a conversation. "
            "Add chat_template.jinja to its folder, or use its instruction-tuned version."
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"model {name!r}: its tokenizer does not report which characters a token covers. "
            "Convert it to a fast one (tokenizer.json)."
        )
    if tokenizer.eos_token is None:
        raise UserError(
            f"model {name!r}: its tokenizer has no eos_token, so nobody can say where a turn ends. "
            "Name it in tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_aligner(
    receiver: str,
    sharers: Sequence[str],
    alignment: Alignment = "spans",
    template_kwargs: dict[str, Any] | None = None,
) -> Aligner:
    """The aligner of models named by folder or hub id; reads their tokenizers only."""
    return Aligner(load_tokenizer(receiver), [load_tokenizer(s) for s in sharers], alignment, template_kwargs)


def load_model(name: str, dtype: str = "auto") -> PreTrainedModel:
    """A frozen causal LM in eval mode; refused by `kv_shape` before its weights are read."""
    kv_shape(load_config(name))
    model = _load(AutoModelForCausalLM, name, "model.safetensors", dtype=dtype)
    model.name_or_path = name  # as it was given: a path of this machine means nothing on another
    return model


def load_models(
    receiver: str, sharers: Sequence[str], dtype: str = "auto"
) -> tuple[PreTrainedModel, list[PreTrainedModel]]:
    """Receiver and sharers named by folder or hub id."""
    return load_model(receiver, dtype), [load_model(s, dtype) for s in sharers]


def kv_shape(config: PreTrainedConfig) -> KVShape:
    """The shape of a model's KV cache.

    Raises:
        UserError: the model keeps no plain per-layer keys and values, and why.
    """
    name = config.name_or_path or config.model_type

    def refuse(reason: str) -> UserError:
        return UserError(f"model {name!r} ({config.model_type}) cannot be fused: {reason}.")

    if config.is_encoder_decoder:
        raise refuse("it is an encoder-decoder, and only decoder-only models have the cache that is fused")
    text = config.get_text_config(decoder=True)
    uneven = CACHE_SIZES & set(getattr(text, "per_layer_attributes", None) or ())
    if uneven:
        raise refuse(f"its layers differ in {', '.join(sorted(uneven))}")
    if getattr(text, "kv_lora_rank", None):
        raise refuse("multi-head latent attention caches a joint latent, not keys and values per head")
    kinds = set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or [])
    strange = kinds - {"full_attention", "sliding_attention", "chunked_attention", "attention"}
    if strange or hasattr(text, "ssm_cfg") or hasattr(text, "state_size") or "mamba" in config.model_type:
        raise refuse(
            f"state-space or linear-attention layers ({', '.join(sorted(strange)) or 'all'}) keep no keys and values"
        )
    if "rwkv" in config.model_type or getattr(text, "num_attention_heads", None) is None:
        raise refuse("it has no attention, and so no keys and values")
    if getattr(text, "num_kv_shared_layers", 0):
        raise refuse("some of its layers share another layer's cache, so they cannot be fused one by one")
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if getattr(text, "new_decoder_architecture", False):  # Falcon's caches a kv head once per query head
        kv_heads = heads
    elif getattr(text, "multi_query", False):
        kv_heads = 1
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    if any(isinstance(x, (list, tuple)) for x in (heads, kv_heads, head_dim)) or getattr(text, "global_head_dim", None):
        raise refuse("its layers differ in their number of kv heads or in head_dim")
    if getattr(text, "v_head_dim", None) not in (None, head_dim):
        raise refuse(f"its keys have head_dim {head_dim} and its values {text.v_head_dim}")
    return KVShape(text.num_hidden_layers, kv_heads, head_dim)


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks keep parts of a module, by FSDP1 or FSDP2, and so have to call it at the same time."""
    return any(isinstance(part, (FSDPModule, FullyShardedDataParallel)) for part in module.modules())


def is_compiled(module: nn.Module) -> bool:
    """Whether a part of it has been handed to torch.compile, see `nn.Module.compile`."""
    return any(part._compiled_call_impl is not None for part in module.modules())


def _load(loader: type, name: str, files: str, **kwargs):
    location = locate(name)
    try:
        return loader.from_pretrained(location, **kwargs)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        kind = "folder" if Path(location).is_dir() else "hub id"
        raise UserError(f"model {name!r} ({kind}): cannot read its {files}: {first_line(error)}") from error
