"""GGUF files as models: what is read is what was written, once, and what would be another model is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from huggingface_hub import cached_assets_path
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import c2c_lightning.models.gguf as reading
from c2c_lightning.cli.commands import main
from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.fuser import C2CFuser, GateConfig
from c2c_lightning.models.identity import fingerprint_of_files
from c2c_lightning.models.loading import load_model, load_tokenizer, locate
from tests.models import tiny
from tests.models.dequantised import SIZES, dequantised

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, LAYERS, INNER = 4, 2, 16, 64, 2, 256
SPECIAL = ("<|im_end|>", "<|im_start|>", "<|pad|>", "<|endoftext|>")
WEIGHTS = {  # Hugging Face's names by those of GGUF, within a layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QUANTISED = {
    "blk.0.ffn_up": Kind.Q8_0,
    "blk.1.attn_v": Kind.Q4_1,
    "blk.0.ffn_gate": Kind.Q5_0,
    "blk.0.ffn_down": Kind.Q4_K,
    "blk.1.ffn_down": Kind.Q6_K,
}
SHAPES = {
    "ffn_up": (INNER, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
}


@cache
def written_tokenizer(individual_digits: bool) -> PreTrainedTokenizerFast:
    """A byte-level one without a normaliser, as GGUF has none."""
    backend = tiny.byte_level(330, list(SPECIAL))
    backend.normalizer = None
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if individual_digits:
        words.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[0], pad_token=SPECIAL[2])


@cache
def written_model() -> PreTrainedModel:
    """The model that is in the file: quantised weights are as the blocks' layouts say."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(written_tokenizer(False)),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        rms_norm_eps=1e-5,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for name, kind in QUANTISED.items():
        weight_of(model, name).copy_(torch.from_numpy(dequantised(blocks(name), kind)))
    return model


@cache
def blocks(name: str) -> np.ndarray:
    """A quantised weight as it stands in the file: random blocks with scales that leave it small."""
    kind, random = QUANTISED[name], np.random.default_rng(7)
    rows, columns = SHAPES[name.removeprefix("blk.")[2:]]
    num_blocks = columns // (256 if kind in (Kind.Q4_K, Kind.Q6_K) else 32)
    made = random.integers(0, 256, (rows, num_blocks, SIZES[kind]), dtype=np.uint8)
    at = {Kind.Q6_K: slice(208, 210), Kind.Q4_K: slice(0, 4), Kind.Q4_1: slice(0, 4)}.get(kind, slice(0, 2))
    scales = random.uniform(-1e-3, 1e-3, (rows, num_blocks, made[:, :, at].shape[2] // 2))
    made[:, :, at] = scales.astype(np.float16).view(np.uint8)
    return made.reshape(rows, -1)


def weight_of(model: PreTrainedModel, name: str) -> torch.Tensor:
    _, layer, part = name.split(".")
    return model.model.layers[int(layer)].get_submodule(WEIGHTS[part]).weight.data


def as_llama_cpp(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys in llama.cpp's order: pairs that are rotated together stand together."""
    return weight.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(
    file: Path,
    architecture: str = "llama",
    rule: str = "gpt-2",
    metadata: dict[str, str | int] | None = None,
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes the tiny model as llama.cpp's converter would."""
    model, tokenizer = written_model(), written_tokenizer(rule == "smollm")
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    state = tokenizer.backend_tokenizer.to_str()
    writer.add_token_merges([" ".join(merge) for merge in tiny.json.loads(state)["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tiny.CHATML)
    for key, value in (metadata or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key, value)
    writer.add_tensor("token_embd.weight", model.model.embed_tokens.weight.detach().numpy())
    writer.add_tensor("output_norm.weight", model.model.norm.weight.detach().numpy())
    for layer in range(LAYERS):
        for part in WEIGHTS:
            name = f"blk.{layer}.{part}"
            weight = weight_of(model, name).numpy()
            if part in ("attn_q", "attn_k"):
                weight = as_llama_cpp(weight, HEADS if part == "attn_q" else KV_HEADS)
            kind = QUANTISED.get(name)
            written = weight if kind is None else blocks(name)
            writer.add_tensor(f"{name}.weight", np.ascontiguousarray(written), raw_dtype=kind)
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("assets")


@pytest.fixture(autouse=True)
def own_cache(assets, monkeypatch) -> None:
    monkeypatch.setattr(reading, "cached_assets_path", partial(cached_assets_path, assets_dir=assets))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@torch.no_grad()
def test_the_model_computes_what_independently_dequantised_weights_compute(file):
    model = load_model(file)
    assert model.dtype == torch.float32
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model(ids).logits, written_model()(ids).logits)
    for name, kind in QUANTISED.items():
        assert torch.equal(weight_of(model, name), torch.from_numpy(dequantised(blocks(name), kind)))


def test_bf16_is_the_exact_value_rounded_once(file):
    exact, rounded = load_model(file).state_dict(), load_model(file, "bfloat16").state_dict()
    assert all(torch.equal(rounded[name], tensor.bfloat16()) for name, tensor in exact.items())


@pytest.mark.parametrize("rule", ["gpt-2", "smollm"])
def test_its_tokens_are_those_of_the_tokenizer_that_was_written(rule, tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "tiny.gguf", rule=rule))
    written = written_tokenizer(rule == "smollm")
    for text in (*tiny.TEXT, "a  12, 3456\n\n\n  7 = 8", "".join(SPECIAL)):
        assert tokenizer(text).input_ids == written(text).input_ids
    for token in SPECIAL:
        assert tokenizer(token).input_ids == [written.convert_tokens_to_ids(token)]
    assert tokenizer.eos_token == SPECIAL[0]
    assert tokenizer.chat_template == tiny.CHATML


def test_a_response_ends_at_every_end_of_turn_that_the_vocabulary_has(file):
    ends = load_model(file).generation_config.eos_token_id
    assert written_tokenizer(False).convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]


def test_it_is_made_once_and_known_by_what_is_in_it(file, tmp_path, monkeypatch):
    folder = locate(file)
    fingerprint = fingerprint_of_files(file)
    monkeypatch.setattr(reading, "_convert", None)  # would fail
    moved = Path(shutil.copy(file, tmp_path / file.name))
    assert locate(moved) == folder
    assert fingerprint_of_files(moved) == fingerprint
    with pytest.raises(TypeError):
        locate(write(moved, metadata={"general.note": "another file under the same name"}))


@pytest.mark.slow
def test_of_two_processes_that_ask_at_once_one_makes_it(tmp_path):
    file = write(tmp_path / "new.gguf")
    script = (
        "import sys; from c2c_lightning.models.loading import load_model, locate\n"
        "print('ready', flush=True); input(); print(locate(sys.argv[1])); load_model(sys.argv[1])"
    )
    environment = {**os.environ, "HF_ASSETS_CACHE": str(tmp_path / "assets")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", script, file], env=environment, **pipes) for _ in range(2)]
    for process in processes:  # both have imported all that takes time
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert sum(line.startswith("Making a model folder") for lines in said for line in lines) == 1


def test_one_that_was_cut_off_is_made_anew(tmp_path, monkeypatch, assets):
    file, convert = write(tmp_path / "cut.gguf", metadata={"general.note": "cut off"}), reading._convert

    def cut_off(*args) -> None:
        convert(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "_convert", cut_off)
    with pytest.raises(KeyboardInterrupt):
        locate(file)
    monkeypatch.undo()
    monkeypatch.setattr(reading, "cached_assets_path", partial(cached_assets_path, assets_dir=assets))
    assert (Path(locate(file)) / "model.safetensors").exists()


def cut(file: Path, at: int) -> Path:
    file.write_bytes(file.read_bytes()[:at])
    return file


REFUSED = {
    "text": (lambda f: (f.write_text("not a model"), f)[1], "is a file, but no GGUF"),
    "empty": (lambda f: (f.write_bytes(b""), f)[1], "is a file, but no GGUF"),
    "header": (lambda f: cut(write(f), 300), "is cut off within its header, or damaged: it has 300 bytes: get it anew"),
    "tensors": (lambda f: cut(write(f), -1000), "is cut off: it has .* get it anew"),
    "noise": (lambda f: (f.write_bytes(b"GGUF\x03\0\0\0" + bytes(range(256))), f)[1], "within its header, or damaged"),
    "character": (lambda f: cut(write(f), f.read_bytes().index("Ġ".encode()) + 1), "is cut off within its header"),
    "version": (lambda f: (f.write_bytes(b"GGUF\x63" + write(f).read_bytes()[5:]), f)[1], "is damaged, or of a kind"),
    "architecture": (partial(write, architecture="rwkv6"), "transformers cannot read"),
    "rope": (partial(write, metadata={"llama.rope.scaling.type": "yarn"}), "scales its rotary embeddings"),
    "factors": (partial(write, more={"rope_freqs.weight": np.ones(8, np.float32)}), "scales its rotary embeddings"),
    "left out": (partial(write, more={"blk.0.attn_q.bias": np.ones(64, np.float32)}), "no place for .*attn_q.bias"),
    "words": (partial(write, rule="brand-new"), "cuts words by 'brand-new'"),
    "part": (partial(write, metadata={"split.count": 3}), "one of 3 parts"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_would_be_another_model_is_refused_and_leaves_nothing(fault, tmp_path, assets):
    spoil, reason = REFUSED[fault]
    file = spoil(tmp_path / f"{fault.replace(' ', '')}.gguf")
    with pytest.raises(UserError, match=rf"model '{file}'.*{reason}") as error:
        locate(file)
    assert "\n" not in str(error.value)
    assert not [path for path in assets.rglob(f"*{file.stem}*") if path.is_dir()]


def test_without_the_extra_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PACKAGES", ("gguf", "no_such_package"))
    with pytest.raises(UserError, match=r"needs the package no_such_package: pip install 'c2c-lightning\[gguf\]'"):
        locate(write(tmp_path / "another.gguf", metadata={"general.note": "unread"}))


def test_a_damaged_one_is_refused_before_a_run_has_a_folder(workspace, capsys):
    file = cut(write(workspace / "cut.gguf"), -1000)
    with pytest.raises(SystemExit, match="is cut off"):
        main(["fit", "--config", str(tiny_config(workspace, file)), "--trainer.max_steps=1"])
    assert not (workspace / "runs").exists()


def tiny_config(folder: Path, file: Path) -> Path:
    config = folder / "config.yaml"
    config.write_text(f"model: {{receiver: {file}, sharers: [c2c_lightning/nano/sharer]}}\ndata: NanoData\n")
    return config


def test_a_fuser_between_them_is_saved_and_found_again_also_where_all_was_moved(file, tmp_path, monkeypatch):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copy(file, before / "tiny.gguf")
    monkeypatch.chdir(before)
    fuser, closed = partial(C2CFuser, hidden=16, dropout=0.0), GateConfig(kind="fixed", open_layers=[])
    made = tiny.between("tiny.gguf", ["tiny.gguf"], fuser=fuser, gate=closed)
    batch = made.models.collate(tiny.CONVERSATIONS[:1])
    for fused, alone in zip(made.prefill(batch).layers, made.prefill(batch, fuse=False).layers):
        assert torch.equal(fused.keys, alone.keys)
        assert torch.equal(fused.values, alone.values)
    made.save_pretrained("fuser")
    monkeypatch.chdir(tmp_path)
    before.rename(after)
    loaded = Communicator.from_pretrained("after/fuser")
    assert loaded.config()["receiver"] == str(after / "tiny.gguf")
    assert torch.equal(loaded.models.receiver.lm_head.weight, made.models.receiver.lm_head.weight)
