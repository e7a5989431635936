"""Whatever is wrong with a model's folder is told in one message that names it, before anything begins."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from c2c_lightning.files import PROJECT
from c2c_lightning.models import check_models
from c2c_lightning.models.loading import load_model, load_tokenizer
from tests.models import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sharer with tied weights, and a receiver."""
    path = tmp_path_factory.mktemp("whole")
    sharer = tiny.build("qwen2")
    sharer.resize_token_embeddings(336)  # transformers gives Qwen's tokenizers an end of text of their own
    sharer.save_pretrained(path / "sharer")
    tiny.tokenizer("bare").save_pretrained(path / "sharer")
    tiny.save("llama", path / "receiver")
    return path


@pytest.fixture
def pair(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "pair")
    return tmp_path / "pair"


def edited(file, **values):
    """Makes a function that sets values in a JSON file of a folder; `...` takes a key away."""

    def edit(folder):
        content = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return edit


def config(**values):
    return edited("config.json", **values)


def written(file, text):
    return lambda folder: (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())


def weights(change):
    """Makes a function that changes the dict of a folder's weights."""

    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")


def quantised(method, **values):
    return config(quantization_config={"quant_method": method, **values})


Q = "model.layers.1.self_attn.q_proj"
SPOILT = {  # of the sharer: how, and what is said
    "config list": (written("config.json", "[]"), "cannot read its config.json"),
    "config deep": (written("config.json", "[" * 5000), "cannot read its config.json"),
    "eps text": (config(rms_norm_eps="x"), "config.json.*rms_norm_eps.*float"),
    "eps nan": (config(rms_norm_eps=float("nan")), "config.json.*rms_norm_eps is not a number"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads"),
    "no layers": (config(num_hidden_layers=0, layer_types=...), "num_hidden_layers"),
    "layers text": (config(num_hidden_layers="two"), "config.json.*num_hidden_layers"),
    "no kv heads": (config(num_key_value_heads=-1), "num_key_value_heads"),
    "hidden null": (config(hidden_size=None), "hidden_size"),
    "layer types bad": (config(layer_types=["nope"] * 3), "layer_types"),
    "layer types short": (config(layer_types=["full_attention"]), "layer_types"),
    "layers more": (config(num_hidden_layers=9, layer_types=...), "files lack .*layers"),
    "layers fewer": (config(num_hidden_layers=2, layer_types=...), r"no place for \(model\.layers\.2"),
    "untied": (config(tie_word_embeddings=False), r"files lack 1 .*lm_head.*tie_word_embeddings to true"),
    "dtype": (config(dtype="float99"), "config.json|model.safetensors"),
    "unknown type": (config(model_type="nope"), "config.json.*nope"),
    "own code": (config(model_type="nope", auto_map={"AutoConfig": "a.B"}), "needs code of its own"),
    "auto map type": (config(model_type="nope", auto_map=3), "config.json|code of its own"),
    "gptq": (quantised("gptq", bits=4), "model.safetensors.*(gptq|GPTQ|optimum)"),
    "awq": (quantised("awq", bits=4), "model.safetensors"),
    "bitsandbytes": (quantised("bitsandbytes", load_in_4bit=True), "model.safetensors.*bitsandbytes"),
    "unknown quantisation": (quantised("nope"), "quantised by 'nope'"),
    "quantisation number": (config(quantization_config=3), "config.json"),
    "generation list": (written("generation_config.json", "[1]"), "generation_config.json"),
    "generation text": (written("generation_config.json", "no"), "generation_config.json"),
    "weight missing": (weights(lambda w: w.pop(f"{Q}.weight")), rf"files lack 1 .*{Q}\.weight"),
    "bias left over": (weights(lambda w: w.update({"model.layers.0.mlp.up_proj.bias": torch.ones(96)})), "no place"),
    "nan": (weights(lambda w: w[f"{Q}.weight"][0].fill_(float("nan"))), rf"{Q}\.weight holds NaN or inf"),
    "inf": (weights(lambda w: w[f"{Q}.bias"][1].fill_(float("-inf"))), rf"{Q}\.bias holds NaN or inf"),
    "shape": (weights(lambda w: w.update({f"{Q}.weight": torch.ones(3, 3)})), "model.safetensors"),
    "pickle": (pickled, "model.safetensors"),
    "tokenizer list": (written("tokenizer_config.json", "[]"), "tokenizer"),
    "extra tokens": (edited("tokenizer_config.json", extra_special_tokens=3), "tokenizer.*extra_special_tokens"),
    "end beyond": (
        edited("tokenizer_config.json", eos_token="<none>"),
        "'<none>' as eos_token, which its tokenizer.json does not",
    ),
    "beyond": (
        edited("tokenizer_config.json", additional_special_tokens=[f"<{i}>" for i in range(9)]),
        "up to 339, beyond the 336",
    ),
    "eos number": (edited("tokenizer_config.json", eos_token=7), "tokenizer"),
}
EACH = "{% for m in messages %}"
TEMPLATES = {
    "endless": (
        EACH + "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "end",
    ),
    "huge": (EACH + "{{ m.content * 9999999 }}{% endfor %}", "gigabytes|does not end in 2 seconds"),
    "long": ("{% for a in range(99999) %}" + EACH + "{{ m.content }}{% endfor %}{% endfor %}", "gigabytes"),
    "power": ("{{ 7 ** (messages | length * 9 ** 9) }}", "does not end in 2 seconds"),
    "recursion": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
    "syntax": (EACH, "refuses"),
    "include": ("{% include 'x' %}", "refuses"),
    "undefined": (EACH + "{{ nope(m.content) }}{% endfor %}", "refuses"),
    "sandbox": ("{{ ''.__class__.__mro__ }}" + EACH + "{{ m.content }}{% endfor %}", "refuses|leaves out"),
    "attribute": ("{{ messages | attr('__class__') }}", "refuses|leaves out"),
    "nothing": ("x", "leaves out, repeats or moves"),
    "roles only": (EACH + "{{ m.role }}{% endfor %}", "leaves out, repeats or moves"),
    "only user": (EACH + "{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "leaves out"),
    "last only": ("{{ messages[-1].content }}", "leaves out"),
    "reversed": ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "moves"),
    "twice": (EACH + "{{ m.content }}{{ m.content }}{% endfor %}", "repeats"),
    "upper": (EACH + "{{ m.content | upper }}{% endfor %}", "changes the text|leaves out"),
    "escaped": (EACH + "{{ m.content | e }}{% endfor %}", "changes the text"),
    "short": (EACH + "{{ m.content[:200] }}{% endfor %}", "changes the text|leaves out"),
    "random": (EACH + "{{ ['a', 'b'] | random }}{{ m.content }}{% endfor %}", "differently every time"),
    "number": (3, "chat template|tokenizer"),
    "named": ([{"name": "tools", "template": "x"}], "chat template|tokenizer"),
}


def refused(pair) -> str:
    with pytest.raises(UserError) as error:
        check_models(str(pair / "receiver"), [str(pair / "sharer")])
    said = str(error.value)
    assert said.startswith(f"model '{pair / 'sharer'}'")
    assert "\n" not in said
    assert len(said) < 600
    return said


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_folder_is_told_of_in_one_message_that_names_it(pair, name):
    spoil, says = SPOILT[name]
    spoil(pair / "sharer")
    assert re.search(says, refused(pair))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "power" else name for name in TEMPLATES]
)
def test_a_template_that_is_no_reading_of_the_messages_is_told_of_in_one_message(pair, name):
    template, says = TEMPLATES[name]
    (pair / "sharer" / "chat_template.jinja").unlink()
    edited("tokenizer_config.json", chat_template=template)(pair / "sharer")
    assert re.search(says, refused(pair))


@pytest.mark.parametrize("name", [*tiny.TOKENIZERS, "once", "generation", "date"])
def test_templates_that_refuse_several_turns_or_use_what_transformers_adds_are_taken(pair, name):
    others = {
        "once": EACH + "{% if loop.index > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ m.content }}{% endfor %}",
        "generation": EACH
        + "{% generation %}{{ m.content }}{% endgeneration %}{% if 0 %}{% break %}{% endif %}{% endfor %}",
        "date": "{{ strftime_now('%Y') }}{{ eos_token }}" + EACH + "{{ m.content }}{{ m.role | tojson }}{% endfor %}",
    }
    template = others.get(name) or tiny.tokenizer(name).chat_template
    (pair / "sharer" / "chat_template.jinja").write_text(template)
    assert load_tokenizer(pair / "sharer").chat_template == template


def test_template_arguments_are_tried_too(pair):
    with pytest.raises(UserError, match=r"model '.*receiver'.*tokenize"):
        check_models(str(pair / "receiver"), [str(pair / "sharer")], template_kwargs={"tokenize": True})


@pytest.mark.parametrize("dtype", ["float99", "int8", "Tensor"])
def test_a_dtype_that_is_none_is_refused(pair, dtype):
    with pytest.raises(UserError, match=rf"model\.dtype is '{dtype}': give auto"):
        check_models(str(pair / "receiver"), [str(pair / "sharer")], dtype=dtype)


def test_what_was_checked_is_loaded_once(pair):
    check_models(str(pair / "receiver"), [str(pair / "sharer")])
    (pair / "receiver" / "model.safetensors").unlink()
    first = load_model(str(pair / "receiver"))
    assert first.name_or_path == str(pair / "receiver")
    with pytest.raises(UserError, match="receiver"):  # and handed out once: nobody shares it
        load_model(str(pair / "receiver"))


@pytest.fixture
def fuser_folder(whole, tmp_path):
    """Of a fuser between models that are named from the working folder."""
    receiver, sharer = str(whole / "receiver"), str(whole / "sharer")
    communicator = tiny.between(receiver, [sharer])
    communicator.save_pretrained(tmp_path / "fuser")
    edited("config.json", receiver="receiver", sharers=["sharer"])(tmp_path / "fuser")
    return tmp_path / "fuser"


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_command_leaves_no_folder_behind_when_a_model_is_refused(pair, fuser_folder, monkeypatch, command):
    edited("tokenizer_config.json", chat_template="x")(pair / "sharer")
    (pair / "sharer" / "chat_template.jinja").unlink()
    monkeypatch.chdir(pair)
    before = set(pair.rglob("*"))
    args = {
        "fit": [f"--config={PROJECT / 'conf' / 'base.yaml'}", "--model.receiver=receiver", "--model.sharers=[sharer]"],
        "test": [f"--config={PROJECT / 'conf' / 'eval' / 'nano.yaml'}", f"--model.fuser={fuser_folder}"],
    }
    with pytest.raises(SystemExit, match="its chat template leaves out"):
        main([command, *args[command]])
    assert set(pair.rglob("*")) == before
