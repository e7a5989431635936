"""A saved fuser: the same answers after a round trip, and an error that names what is wrong with it."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from c2c_lightning import Communicator
from c2c_lightning.communicator import load_communicator
from c2c_lightning.fuser import C2CFuser, GateConfig, IdenticalFuser
from c2c_lightning.models import load_aligner
from tests.models import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Folders of three models with their tokenizers: a receiver and two sharers."""
    folders = []
    for family in ("qwen3", "llama", "gemma3"):
        folder = tmp_path_factory.mktemp(family)
        tiny.model(family).save_pretrained(folder)
        tiny.tokenizer(tiny.FAMILIES[family][0]).save_pretrained(folder)
        folders.append(str(folder))
    return folders


def make(models: list[str], **kwargs) -> Communicator:
    torch.manual_seed(3)
    aligner = load_aligner(models[0], models[1:], kwargs.pop("alignment", "spans"), kwargs.pop("template_kwargs", None))
    fuser = partial(C2CFuser, hidden=16, num_layers=4, dropout=0.2)
    communicator = load_communicator(models[0], models[1:], aligner, fuser=fuser, **kwargs).eval()
    with torch.no_grad():
        for gate in communicator.gates:
            gate.logit.copy_(gate.logit.sign() * torch.rand_like(gate.logit))
    return communicator


@pytest.fixture
def saved(models, tmp_path) -> str:
    folder = tmp_path / "fuser"
    make(models[:2]).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"gate": GateConfig(granularity="head", parts="values", init=0.0, temperature=(2.0, 0.1), sparsity=0.1)},
        {"gate": GateConfig(kind="fixed", open_layers=[2, 3]), "layers": "last:2"},
        {"layer_map": "depth", "layers": [0, 2], "alignment": "published", "template_kwargs": {"quiet": True}},
    ],
)
@torch.no_grad()
def test_a_round_trip_gives_the_same_logits(models, tmp_path, kwargs):
    communicator = make(models, **kwargs)
    communicator.save_pretrained(tmp_path / "fuser")
    loaded = Communicator.from_pretrained(str(tmp_path / "fuser"))
    assert not any(module.training for module in loaded.modules())
    assert loaded.layer_maps == communicator.layer_maps
    assert loaded.gates[0].config == communicator.gates[0].config
    assert loaded.aligner.template_kwargs == communicator.aligner.template_kwargs
    asked = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 4, "do_sample": False}
    ours, theirs = (c.generate_ids(c.collate(tiny.CONVERSATIONS), **asked).logits for c in (communicator, loaded))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_an_explicit_layer_map_comes_back_as_it_was(models, tmp_path):
    make(models[:2], layer_map={3: 0, 1: 1}).save_pretrained(tmp_path)
    assert Communicator.from_pretrained(str(tmp_path)).layer_maps == [{1: 1, 3: 0}]


def test_the_folder_names_the_models_and_holds_the_fuser_only(models, saved, tmp_path):
    config = json.loads((tmp_path / "fuser" / "config.json").read_text())
    assert (config["receiver"], config["sharers"]) == (models[0], [models[1]])
    assert config["fuser"]["class_path"] == "c2c_lightning.fuser.c2c.C2CFuser"
    assert config["fuser"]["init_args"] == {"hidden": 16, "intermediate": None, "num_layers": 4, "dropout": 0.2}
    assert sorted(p.name for p in (tmp_path / "fuser").iterdir()) == ["config.json", "model.safetensors"]


class ScaledFuser(C2CFuser):
    """A user's own fuser in a user's own file."""

    def update(self, sharer_GTF, receiver_GTF, groups):
        return 2 * super().update(sharer_GTF, receiver_GTF, groups)


def test_a_users_own_fuser_class_is_saved_and_loaded(models, tmp_path):
    aligner = load_aligner(models[0], models[1:2])
    communicator = load_communicator(models[0], models[1:2], aligner, fuser=partial(ScaledFuser, hidden=8))
    communicator.save_pretrained(tmp_path)
    assert type(Communicator.from_pretrained(str(tmp_path)).fusers[0]) is ScaledFuser


def test_a_fuser_that_reads_no_sharer_cannot_be_one_of_two(models):
    aligner = load_aligner(models[0], models[1:])
    with pytest.raises(ValueError, match="IdenticalFuser reads no sharer's cache, so it cannot be one of 2"):
        load_communicator(models[0], models[1:], aligner, fuser=IdenticalFuser)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, tmp_path, file):
    (tmp_path / "fuser" / file).unlink()
    with pytest.raises(ValueError, match=rf"fuser '{saved}' has no {file}"):
        Communicator.from_pretrained(saved)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [b"", b'{"format": 1, "rec', b"\xff\xfe\x00", b"[]"])
def test_a_damaged_file_is_named(saved, tmp_path, file, damage):
    (tmp_path / "fuser" / file).write_bytes(damage)
    with pytest.raises(ValueError, match=rf"fuser '{saved}': its {file} is damaged"):
        Communicator.from_pretrained(saved)


def test_a_weights_file_that_was_cut_off_is_named(saved, tmp_path):
    weights = tmp_path / "fuser" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"fuser '{saved}': its model.safetensors is damaged"):
        Communicator.from_pretrained(saved)


def edited(saved: str, **changes) -> str:
    """The saved fuser with a config.json in which some keys are others; None takes a key out."""
    file = f"{saved}/config.json"
    with open(file, encoding="utf-8") as f:
        config = {**json.load(f), **changes}
    with open(file, "w", encoding="utf-8") as f:
        json.dump({key: value for key, value in config.items() if value is not None}, f)
    return saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "has format 3.*this version reads formats 1 and 2"),
        ({"gate": None}, r"lacks \['gate'\]"),
        ({"fuser": {"class_path": "nowhere.Fuser", "init_args": {}}}, "nowhere.Fuser, which cannot be imported"),
        ({"fuser": {"class_path": "Fuser", "init_args": {}}}, "Fuser, which cannot be imported"),
        ({"fuser": {"class_path": "torch.nn.None", "init_args": {}}}, "torch.nn.None, which cannot be imported"),
        ({"fuser": {"class_path": "torch.nn.Linear", "init_args": {}}}, "torch.nn.Linear, which is no subclass of Fuser"),
        ({"fuser": {"class_path": "os.system", "init_args": {}}}, "os.system, which is no subclass of Fuser"),
        ({"fuser": {"class_path": "c2c_lightning.fuser.C2CFuser", "init_args": {"hidden": 8}}}, "does not fit its config.json"),
        ({"fuser": {"class_path": "c2c_lightning.fuser.C2CFuser", "init_args": {"width": 8}}}, "its config.json.*width"),
        ({"gate": {"kind": "learned", "colour": 1}}, "its config.json.*colour"),
        ({"gate": {"kind": "learnt"}}, "its config.json.*gate.kind is 'learnt'"),
    ],
)  # fmt: skip
def test_a_config_that_says_what_cannot_be_is_named(saved, changes, message):
    with pytest.raises(ValueError, match=rf"fuser '{saved}'.*(?s:{message})"):
        Communicator.from_pretrained(edited(saved, **changes))


def test_a_model_folder_that_is_gone_is_named(models, saved):
    with pytest.raises(ValueError, match="model '/no/such/model': no such folder"):
        Communicator.from_pretrained(edited(saved, sharers=["/no/such/model"]))


def test_a_model_of_another_size_is_named(models, saved):
    with pytest.raises(ValueError, match=rf"fuser '{saved}' does not fit its config.json"):
        Communicator.from_pretrained(edited(saved, sharers=[models[2]]))


def test_a_fuser_folder_that_is_gone_is_called_a_fuser():
    with pytest.raises(ValueError, match="fuser '/no/such/fuser': no such folder"):
        Communicator.from_pretrained("/no/such/fuser")
    with pytest.raises(ValueError, match="fuser 'owner/no-such-fuser' is neither a folder nor to be had from the hub"):
        Communicator.from_pretrained("owner/no-such-fuser")


def test_a_folder_can_be_moved_and_saved_over(models, saved, tmp_path):
    shutil.move(saved, tmp_path / "elsewhere")
    loaded = Communicator.from_pretrained(str(tmp_path / "elsewhere"))
    loaded.save_pretrained(tmp_path / "elsewhere")
    assert Communicator.from_pretrained(str(tmp_path / "elsewhere")).layer_maps == loaded.layer_maps


def test_a_fuser_of_format_1_whose_matrices_lay_the_other_way_round_loads_as_it_was(models, tmp_path):
    make(models).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == 2
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 1}))
    state = load_file(tmp_path / "model.safetensors")
    old = {name: t.mT.contiguous() if name.endswith(".weight") else t for name, t in state.items()}
    save_file(old, tmp_path / "model.safetensors")
    loaded = Communicator.from_pretrained(str(tmp_path)).fusers.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
