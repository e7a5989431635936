"""GGUF files as models: each is made once into a Hugging Face folder, which is then read as any other folder.

transformers reads the file (the packages of the extra `gguf`) and dequantises its weights to fp32, exactly. Its model
cannot be saved, as its quantiser is in the way, so a fresh one with the same weights is. Two things are set right on
the way: how words are cut for vocabularies whose rule transformers does not know, and which tokens end a response.
What transformers would leave out without a word (scaled rotary embeddings, weights that it has no place for) is
refused.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from tokenizers import AddedToken, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations.gguf import GGUF_ARCHS, reader
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from xxhash import xxh3_128

from c2c_lightning.errors import UserError
from c2c_lightning.files import whole_folder
from c2c_lightning.models.checks import check_weights

MAGIC = b"GGUF"
PACKAGES = ("gguf", "accelerate")
MADE_AS = 1  # counted up when folders are to be made anew
CONTROL, USER_DEFINED = 3, 4  # types of tokens: what is not text, and text that is never merged

# `tokenizer.ggml.pre` names the rule by which words are cut before they are merged; the names are llama.cpp's.
AS_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais"})
DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
# A word that is in the vocabulary is one token, also where no merges lead to it.
WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"})

# Tokens that end a turn wherever they are control tokens, as llama.cpp has them: files name only one by its id.
ENDS_OF_TURN = frozenset(
    """
    <|eot_id|> <|eom_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <|return|> <|call|> <EOT>
    [EOT] <｜end▁of▁sentence｜> <end_of_utterance> <turn|>
    """.split()  # noqa: SIM905
)


def gguf_folder(file: Path) -> Path:
    """The Hugging Face folder of a GGUF file, made if it is not there yet.

    It lies in the user's cache (`$HF_ASSETS_CACHE`, or assets/ in `$HF_HOME`) and is named by the file's checksum, so
    a file that is moved keeps it and one that is replaced gets another. Its weights are fp32. Of several processes
    that ask at once one makes it, and it is there as a whole or not at all.

    Raises:
        UserError: the file is no GGUF, is damaged or cut off, is of a kind that cannot be read, or the packages that
            read it are not installed.
    """
    stat = file.stat()
    name = f"{file.stem}-{_checksum(file, stat.st_size, stat.st_mtime_ns)}"
    folder = cached_assets_path("c2c_lightning", "models", "gguf") / name
    if folder.is_dir():
        return folder
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.is_dir():
            for cut_off in folder.parent.glob(f".{name}.*.part"):
                shutil.rmtree(cut_off, ignore_errors=True)
            header = _read_header(file)
            _check(file, header)
            print(f"Making a model folder of {file}, once: {folder}", flush=True)
            with whole_folder(folder) as unfinished:
                _convert(file, header, unfinished)
    return folder


@lru_cache(maxsize=64)
def _checksum(file: Path, size: int, changed: int) -> str:
    """Of every byte, by a hash that is as fast as memory; size and time of change are for the cache alone."""
    digest = xxh3_128(f"{MADE_AS}".encode())
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise UserError(f"model {str(file)!r} is a file, but no GGUF: name a model's folder, a .gguf or a hub id.")
        while block := opened.read(2**22):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Header:
    """What a GGUF file says before its tensors."""

    metadata: dict[str, Any]
    tensors: list[str]

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]


def _read_header(file: Path) -> Header:
    """Raises UserError if the packages that read a GGUF are not there, or the file is damaged or cut off."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UserError(
            f"model {str(file)!r}: reading GGUF needs the package {' and '.join(missing)}: "
            "pip install 'c2c-lightning[gguf]'."
        )
    from gguf import GGML_QUANT_SIZES  # the extra's

    try:
        blob = reader._mapped(str(file))
        metadata, count, at = reader._read_metadata(blob, str(file), ("tokenizer.ggml.tokens",))
        tensors, at = reader._read_tensor_table(blob, count, at)
        sizes = {kind.value: (size, num_bytes) for kind, (size, num_bytes) in GGML_QUANT_SIZES.items()}
        ends = [offset + math.prod(shape) // sizes[kind][0] * sizes[kind][1] for _, shape, kind, offset in tensors]
    except (struct.error, UnicodeDecodeError) as error:  # read past the end, or within a character there
        raise UserError(
            f"model {str(file)!r} is cut off within its header, or damaged: it has {len(blob):,} bytes: get it anew."
        ) from error
    except Exception as error:  # its own
        raise _damaged(file, error) from error
    alignment = metadata.get("general.alignment", 32)
    end = -(-at // alignment) * alignment + max(ends, default=0)
    if end > len(blob):
        raise UserError(f"model {str(file)!r} is cut off: it has {len(blob):,} bytes of {end:,}: get it anew.")
    return Header(metadata, [name for name, *_ in tensors])


def _check(file: Path, header: Header) -> None:
    """Refuses what transformers would read as another model or another tokenizer than the file's."""
    metadata = header.metadata
    if metadata.get("split.count", 1) > 1:
        raise UserError(f"model {str(file)!r} is one of {metadata['split.count']} parts: merge them (gguf-split).")
    scaling = metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaling != "none" or any(name.startswith("rope_") for name in header.tensors):
        raise UserError(
            f"model {str(file)!r} scales its rotary embeddings, which transformers' GGUF reader leaves out, so it would "
            "be another model: use its folder in Hugging Face's format."
        )
    rule = metadata.get("tokenizer.ggml.pre")
    known = {*GGUF_PRE_TOKENIZER_SPLITS, *AS_GPT2, *DIGIT_BY_DIGIT}
    if metadata.get("tokenizer.ggml.model") == "gpt2" and rule not in known:
        raise UserError(
            f"model {str(file)!r}: its tokenizer cuts words by {rule!r} (tokenizer.ggml.pre), which is not known here, "
            "so its tokens would be others: use its folder in Hugging Face's format."
        )


def _damaged(file: Path, error: Exception) -> UserError:
    said = " ".join(str(error).split()).replace(f"{file} ", "")
    return UserError(
        f"model {str(file)!r} is damaged, or of a kind that transformers cannot read: {said[:300] or type(error).__name__}."
    )


def _convert(file: Path, header: Header, folder: Path) -> None:
    # Alone in a folder, as transformers would take a tokenizer.json beside the file for the file's.
    with tempfile.TemporaryDirectory() as alone:
        Path(alone, "model.gguf").symlink_to(file.resolve())
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
            model, read = AutoModelForCausalLM.from_pretrained(
                alone, gguf_file="model.gguf", dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # of whatever in it is not as it should be
            raise _damaged(file, error) from error
    model.name_or_path = str(file)
    check_weights(model, read["missing_keys"], [*read["unexpected_keys"], *_left_out(header, model)])
    _set_right(tokenizer, header.metadata)
    tokenizer.save_pretrained(folder)
    fresh = _without_quantiser(model)
    fresh.generation_config = _generation_config(header.metadata)
    fresh.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # safetensors makes files that only their owner may read
        weights.chmod((folder / "config.json").stat().st_mode)


def _left_out(header: Header, model: PreTrainedModel) -> list[str]:
    """Tensors that transformers passes over without a word, as it does for architectures of its older reader."""
    if header.architecture in GGUF_ARCHS:
        return []
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=model.config.to_dict())
    return sorted(set(header.tensors) - get_gguf_hf_weights_map(model, processor).keys())


def _set_right(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Cuts text as llama.cpp does where transformers does otherwise."""
    backend, rule = tokenizer.backend_tokenizer, metadata.get("tokenizer.ggml.pre")
    if rule in DIGIT_BY_DIGIT:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if rule in WHOLE_WORDS:
        backend.model.ignore_merges = True
    # Gemma's runs of spaces: the longest is one token, and merges would make two halves of it.
    runs = [
        "▁" * len(token) for token, _ in _of_type(USER_DEFINED, metadata) if len(token) > 1 and not token.strip(" ")
    ]
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs if backend.token_to_id(run) is not None])


def _of_type(kind: int, metadata: dict[str, Any]) -> list[tuple[str, int]]:
    """Tokens of a type, with their ids."""
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    return [(token, i) for i, (token, k) in enumerate(zip(metadata["tokenizer.ggml.tokens"], kinds)) if k == kind]


def _without_quantiser(model: PreTrainedModel) -> PreTrainedModel:
    config = deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    return fresh


def _generation_config(metadata: dict[str, Any]) -> GenerationConfig:
    named = {kind: metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "eot", "eom", "padding")}
    written = [i for token, i in _of_type(CONTROL, metadata) if token in ENDS_OF_TURN]
    ends = [end for end in dict.fromkeys([named["eos"], named["eot"], named["eom"], *written]) if end is not None]
    return GenerationConfig(bos_token_id=named["bos"], eos_token_id=ends or None, pad_token_id=named["padding"])
