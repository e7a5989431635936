"""Loading frozen LMs and their tokenizers, and refusing those whose cache cannot be fused."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.quantizers import AutoHfQuantizer

from c2c_lightning.errors import UserError
from c2c_lightning.files import find_path
from c2c_lightning.fuser import KVShape
from c2c_lightning.models.alignment import Aligner, Alignment
from c2c_lightning.models.chat import ChatConfig, plain
from c2c_lightning.models.checks import check_template, check_tokens, check_weights
from c2c_lightning.models.gguf import gguf_folder

CACHE_SIZES = {"num_attention_heads", "num_key_value_heads", "head_dim", "kv_lora_rank"}


def locate(name: str | os.PathLike[str], what: str = "model") -> str:
    """A folder's path, that of the folder made of a GGUF file, or else `name` itself as a hub id.

    Paths are looked up from the working folder and then from the project's, so that the built-in pair
    is found from anywhere.

    Raises:
        UserError: `name` can only be meant as a path, and nothing is there.
    """
    name = os.fspath(name)
    path = find_path(name, what)
    if path is not None and path.is_file():
        if what != "model":
            raise UserError(f"{what} {name!r} is a file. Give a folder's path or a hub id (owner/name).")
        path = gguf_folder(path)
    return name if path is None else str(path)


def load_config(name: str | os.PathLike[str]) -> PreTrainedConfig:
    """A model's configuration.

    Raises:
        UserError: it cannot be read, holds NaN, or asks for a kind of quantisation that nobody here knows.
    """
    config = _load(AutoConfig, name, "config.json")
    if strange := [key for key, value in config.to_dict().items() if isinstance(value, float) and math.isnan(value)]:
        raise UserError(f"model {str(name)!r}: its config.json says that {strange[0]} is not a number (NaN).")
    quantised = getattr(config, "quantization_config", None)
    # transformers would load such weights as if they were plain ones, with a warning.
    if quantised and not _try(AutoHfQuantizer.supports_quant_method, name, "quantization_config", quantised):
        raise UserError(
            f"model {str(name)!r} is quantised by {quantised.get('quant_method')!r} (config.json), which transformers "
            "does not know: use its plain version."
        )
    return config


def load_tokenizer(
    name: str | os.PathLike[str], template_kwargs: dict[str, Any] | None = None, template: str | None = None
) -> Tokenizer:
    """The model's tokenizer, with a chat template and a padding token.

    Args:
        name: folder or hub id.
        template_kwargs: with which its chat template will be called; None for the defaults.
        template: in place of the model's own: `plain`, or a template's text.

    Raises:
        UserError: there is no tokenizer, it has no end of turn, it cannot tell which characters a token came from, or
            it has no chat template that says all messages in order.
    """
    folder = Path(locate(name))
    if folder.is_dir() and not any(folder.glob("*tok*")) and not any(folder.glob("vocab*")):
        raise UserError(f"model {str(name)!r} has no tokenizer in its folder (tokenizer.json).")
    tokenizer = _load(AutoTokenizer, name, "tokenizer.json, tokenizer_config.json")
    if template is not None:
        tokenizer.chat_template = plain(tokenizer) if template == "plain" else template
    if not tokenizer.chat_template:
        raise UserError(
            f"model {str(name)!r} has no chat template, so nobody can say how it reads a conversation. Give one as "
            "model.chat.receiver or in model.chat.sharers (a file, or plain), or use its instruction-tuned version."
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"model {str(name)!r}: its tokenizer does not report which characters a token covers. "
            "Convert it to a fast one (tokenizer.json)."
        )
    if tokenizer.eos_token is None:
        raise UserError(
            f"model {str(name)!r}: its tokenizer has no eos_token, so nobody can say where a turn ends. "
            "Name it in tokenizer_config.json."
        )
    # transformers makes a new token of one that is not there, which no model ever says.
    vocabulary = folder / "tokenizer.json"
    added = [token.content for token in tokenizer.init_kwargs.get("added_tokens_decoder", {}).values()]
    if vocabulary.exists() and tokenizer.eos_token not in added:
        text = vocabulary.read_text(encoding="utf-8")
        if not any(json.dumps(tokenizer.eos_token, ensure_ascii=plain) in text for plain in (True, False)):
            raise UserError(
                f"model {str(name)!r}: its tokenizer_config.json names {tokenizer.eos_token!r} as eos_token, which "
                "its tokenizer.json does not have: name the token that ends a turn."
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        check_template(tokenizer, template_kwargs)
    except Exception as error:  # of a template of any type, and of whatever it does
        said = str(error).replace(f"the chat template of {tokenizer.name_or_path!r}", "its chat template")
        raise UserError(f"model {str(name)!r}: {' '.join(said.split())[:300]}.") from error
    return tokenizer


def load_aligner(
    receiver: str,
    sharers: Sequence[str],
    alignment: Alignment = "spans",
    template_kwargs: dict[str, Any] | None = None,
    chat: ChatConfig | None = None,
) -> Aligner:
    """The aligner of models named by folder or hub id; reads their tokenizers only."""
    chat = (chat or ChatConfig()).read(len(sharers))
    templates = chat.of(len(sharers))
    tokenizers = [load_tokenizer(name, template_kwargs, t) for name, t in zip((receiver, *sharers), templates)]
    return Aligner(tokenizers[0], tokenizers[1:], alignment, template_kwargs, chat.kept(tokenizers))


def load_model(name: str | os.PathLike[str], dtype: str = "auto") -> PreTrainedModel:
    """A frozen causal LM in eval mode; refused by `kv_shape` before its weights are read.

    Raises:
        UserError: a file cannot be read, a weight is missing, left over or not finite, or the cache cannot be fused.
    """
    if (name, dtype) in _checked:
        return _checked.pop((name, dtype))
    if dtype != "auto" and not (
        isinstance(getattr(torch, dtype, None), torch.dtype) and getattr(torch, dtype).is_floating_point
    ):
        raise UserError(f"model.dtype is {dtype!r}: give auto, float32, bfloat16 or float16.")
    kv_shape(load_config(name))
    if Path(locate(name), "generation_config.json").exists():
        _load(GenerationConfig, name, "generation_config.json")
    model, read = _load(AutoModelForCausalLM, name, "model.safetensors", dtype=dtype, output_loading_info=True)
    model.name_or_path = str(name)  # as it was given: a path of this machine means nothing on another
    check_weights(model, read["missing_keys"], read["unexpected_keys"])
    return model


def load_models(
    receiver: str, sharers: Sequence[str], dtype: str = "auto"
) -> tuple[PreTrainedModel, list[PreTrainedModel]]:
    """Receiver and sharers named by folder or hub id."""
    return load_model(receiver, dtype), [load_model(s, dtype) for s in sharers]


_checked: dict[tuple[str, str], PreTrainedModel] = {}


def check_models(
    receiver: str,
    sharers: Sequence[str],
    alignment: Alignment = "spans",
    template_kwargs: dict[str, Any] | None = None,
    chat: ChatConfig | None = None,
    dtype: str = "auto",
) -> None:
    """Refuses models that cannot be used, with one message, before a run has a folder.

    What is loaded for it is handed out by the next `load_model` of the same name and dtype.

    Raises:
        UserError: the first thing that is wrong with one of them, and what to do.
    """
    for name in (receiver, *sharers):
        kv_shape(load_config(name))  # what tokenizers say of a config that cannot be read helps nobody
    aligner = load_aligner(receiver, sharers, alignment, template_kwargs, chat)
    for name, tokenizer in zip((receiver, *sharers), (aligner.receiver, *aligner.sharers)):
        if (name, dtype) not in _checked:
            model = load_model(name, dtype)
            check_tokens(model, tokenizer)
            _checked[name, dtype] = model


def longest(model: PreTrainedModel) -> float:
    """How many tokens a model can read, response included; infinite where its config.json does not say."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf


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
    for size in ("num_attention_heads", "num_hidden_layers", "hidden_size", "num_key_value_heads", "head_dim"):
        value = getattr(text, size, None)
        if value is not None and not isinstance(value, (list, tuple)) and not (isinstance(value, int) and value > 0):
            raise refuse(f"its config.json has {size} {value!r}, which must be a positive number")
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


def _load(loader: Any, name: str | os.PathLike[str], files: str, **kwargs: Any) -> Any:
    # A model's own code is never run: transformers would ask on the terminal whether to.
    return _try(loader.from_pretrained, name, files, locate(name), trust_remote_code=False, **kwargs)


def _try(function: Callable[..., Any], name: str | os.PathLike[str], what: str, *args: Any, **kwargs: Any) -> Any:
    """Calls what reads a part of a model; whatever it raises becomes one message."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # the readers of transformers, tokenizers, safetensors, pickle and jinja2 have their own
        kind = "folder" if Path(locate(name)).is_dir() else "hub id"
        said = " ".join(str(error).split())
        if "trust_remote_code" in said:
            raise UserError(
                f"model {str(name)!r} ({kind}) needs code of its own (auto_map in its {what}), which is never run here: "
                "use a model of a kind that transformers knows."
            ) from error
        said = said if isinstance(error, (OSError, ValueError)) and said else f"{type(error).__name__}: {said}"
        raise UserError(f"model {str(name)!r} ({kind}): cannot read its {what}: {said[:300]}") from error
