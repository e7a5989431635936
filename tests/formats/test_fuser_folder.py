"""A saved fuser: the same answers after a round trip, and an error that names what is wrong with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from c2c_lightning import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.fuser import C2CFuser, GateConfig, IdenticalFuser
from c2c_lightning.models import load_aligner
from tests.disk import full_disk
from tests.models import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Folders of three models with their tokenizers: a receiver and two sharers."""
    return [str(tiny.save(family, tmp_path_factory.mktemp(family))) for family in ("qwen3", "llama", "gemma3")]


def make(models: list[str], **kwargs) -> Communicator:
    torch.manual_seed(3)
    aligner = load_aligner(models[0], models[1:], kwargs.pop("alignment", "spans"), kwargs.pop("template_kwargs", None))
    fuser = partial(C2CFuser, hidden=16, num_layers=4, dropout=0.2)
    communicator = tiny.between(models[0], models[1:], aligner, fuser=fuser, **kwargs).eval()
    with torch.no_grad():
        for gate in communicator.fusers.gates:
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
    assert loaded.fusers.layer_maps == communicator.fusers.layer_maps
    assert loaded.fusers.gates[0].config == communicator.fusers.gates[0].config
    assert loaded.models.aligner.template_kwargs == communicator.models.aligner.template_kwargs
    asked = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 4, "do_sample": False}
    ours, theirs = (
        c.generate_ids(c.models.collate(tiny.CONVERSATIONS), **asked).logits for c in (communicator, loaded)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_an_explicit_layer_map_comes_back_as_it_was(models, tmp_path):
    make(models[:2], layer_map={3: 0, 1: 1}).save_pretrained(tmp_path)
    assert Communicator.from_pretrained(str(tmp_path)).fusers.layer_maps == [{1: 1, 3: 0}]


def test_the_folder_names_the_models_and_holds_the_fuser_only(models, saved, tmp_path):
    config = json.loads((tmp_path / "fuser" / "config.json").read_text())
    assert (config["receiver"], config["sharers"]) == (models[0], [models[1]])
    assert config["fuser"]["class_path"] == "c2c_lightning.fuser.C2CFuser"
    assert config["fuser"]["init_args"] == {"hidden": 16, "intermediate": None, "num_layers": 4, "dropout": 0.2}
    assert sorted(p.name for p in (tmp_path / "fuser").iterdir()) == ["config.json", "model.safetensors"]


class ScaledFuser(C2CFuser):
    """A user's own fuser in a user's own file."""

    def update(self, sharer_GTF, receiver_GTF, groups):
        return 2 * super().update(sharer_GTF, receiver_GTF, groups)


def test_a_users_own_fuser_class_is_saved_and_loaded_when_the_user_trusts_it(models, tmp_path):
    communicator = tiny.between(models[0], models[1:2], fuser=partial(ScaledFuser, hidden=8))
    communicator.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ScaledFuser, which is none of c2c_lightning\.fuser.*say trust_remote_code"):
        Communicator.from_pretrained(tmp_path)
    assert type(Communicator.from_pretrained(tmp_path, trust_remote_code=True).fusers[0]) is ScaledFuser


def test_a_module_that_came_with_a_fuser_is_not_run(saved, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="say trust_remote_code"):
        Communicator.from_pretrained(edited(saved, fuser={"class_path": "evil.Fuser", "init_args": {}}))
    assert not (tmp_path / "executed").exists()


def test_a_fuser_that_reads_no_sharer_cannot_be_one_of_two(models):
    with pytest.raises(ValueError, match="IdenticalFuser reads no sharer's cache, so it cannot be one of 2"):
        tiny.between(models[0], models[1:], fuser=IdenticalFuser)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, tmp_path, file):
    (tmp_path / "fuser" / file).unlink()
    with pytest.raises(ValueError, match=rf"fuser '{saved}' has no {file}"):
        Communicator.from_pretrained(saved)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [b"", b'{"format": 1, "rec', b"\xff\xfe\x00", b"[]", b"[" * 5000])
def test_a_damaged_file_is_named(saved, tmp_path, file, damage):
    (tmp_path / "fuser" / file).write_bytes(damage)
    with pytest.raises(UserError, match=rf"fuser '{saved}': .*{file} is damaged"):
        Communicator.from_pretrained(saved)


def test_a_weights_file_that_was_cut_off_is_named(saved, tmp_path):
    weights = tmp_path / "fuser" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"fuser '{saved}': its model.safetensors is damaged"):
        Communicator.from_pretrained(saved)


@pytest.mark.parametrize("tensor", ["0.gate.logit", "0.update_head.weight"])
def test_weights_that_are_not_finite_are_refused(saved, tensor):
    state = load_file(f"{saved}/model.safetensors")
    state[tensor].view(-1)[0] = torch.nan
    save_file(state, f"{saved}/model.safetensors")
    with pytest.raises(UserError, match=rf"fuser '{saved}': {tensor} has values that are not finite"):
        Communicator.from_pretrained(saved)


def edited(saved: str | Path, **changes) -> str:
    """The saved fuser with a config.json in which some keys are others; None takes a key out."""
    file = f"{saved}/config.json"
    with open(file, encoding="utf-8") as f:
        config = {**json.load(f), **changes}
    with open(file, "w", encoding="utf-8") as f:
        json.dump({key: value for key, value in config.items() if value is not None}, f)
    return saved


C2C = "c2c_lightning.fuser.C2CFuser"


def fuser(class_path=C2C, **init_args) -> dict:
    return {"fuser": {"class_path": class_path, "init_args": {"hidden": 16, "num_layers": 4} | init_args}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "has format 3.*this version reads formats 1 and 2"),
        ({"gate": None}, "gate: Field required"),
        ({"gate": {"colour": 1}}, "its gate has a 'colour'"),
        ({"gate": {"kind": "learnt"}}, "its gate is damaged: kind.*'learnt'"),
        ({"gate": {"kind": "learned", "init": "x"}}, "its gate is damaged: init.*'x'"),
        ({"gate": {"kind": "learned", "parts": "keys"}}, r"0.gate.logit is \[2, 2, 1\], and would have to be \[1, 2, 1\]"),
        ({"fuser": None}, "fuser: Field required"),
        ({"fuser": []}, "fuser: Input should be a valid dictionary"),
        ({"fuser": {"class_path": C2C}}, "fuser.init_args: Field required"),
        ({"fuser": {"init_args": {}}}, "fuser.class_path: Field required"),
        ({"fuser": {"class_path": None, "init_args": {}}}, "fuser.class_path: Input should be a valid string"),
        (fuser("Fuser"), "'Fuser', which is no import path"),
        (fuser(".."), r"'\.\.', which is no import path"),
        (fuser(".evil"), r"'\.evil', which is no import path"),
        (fuser("../../evil.Fuser"), "'../../evil.Fuser', which is no import path"),
        (fuser("nowhere.Fuser"), "nowhere.Fuser, which is none of"),
        (fuser("unittest.main"), "unittest.main, which is none of"),
        (fuser("os.system"), "os.system, which is none of"),
        (fuser("c2c_lightning.fuser.Gone"), "Gone, which cannot be imported"),
        (fuser("c2c_lightning.fuser.Gate"), "Gate, which is no subclass of Fuser"),
        (fuser("c2c_lightning.fuser.Fuser"), "its config makes none: .*abstract"),
        (fuser(hidden=8), r"0.input.weight is \[4, \d+, 16\], and would have to be \[4, \d+, 8\]"),
        (fuser(width=8), "its config makes none: .*width"),
        (fuser(hidden="wide"), "its config makes none: "),
        (fuser(hidden=10**8), "0.input.weight is"),
        (fuser(hidden=10**12), "its config makes none: "),
        (fuser(hidden=10**30), "its config makes none: "),
        (fuser(num_layers=10**9), "its config makes more than the [0-9]+ tensors that it has"),
        ({"layer_map": {"a": 0}}, "layer_map.*valid integer.*'a'"),
        ({"layer_map": {"0": "x"}}, "layer_map.*valid integer.*'x'"),
        ({"layer_map": "upwards"}, "its config makes none: model.layer_map is 'upwards'"),
        ({"layers": {"a": 1}}, "layers.*is damaged|is damaged: layers"),
        ({"layers": [3]}, r"It was trained on 2 receiver layers between \S+ and \S+ .*and meets \S+ with 4 layers"),
        ({"receiver": []}, "receiver: Input should be a valid string"),
        ({"receiver": 7}, "receiver: Input should be a valid string"),
        ({"receiver": ""}, "receiver: String should have at least 1 character"),
        ({"sharers": [7]}, "sharers.0: Input should be a valid string"),
        ({"sharers": []}, "sharers: List should have at least 1 item"),
        ({"alignment": "by ear"}, "alignment: Input should be"),
        ({"template_kwargs": [1]}, "template_kwargs: Input should be a valid dictionary"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_says_what_cannot_be_is_refused_before_models_are_read(saved, monkeypatch, changes, message):
    # Weights that are asked for would not be found.
    monkeypatch.setattr("c2c_lightning.communicator.load_models", None)
    with pytest.raises(UserError, match=rf"fuser '{saved}'.*(?s:{message})"):
        Communicator.from_pretrained(edited(saved, **changes))


def test_a_null_is_no_model(saved):
    file = Path(saved, "config.json")
    file.write_text(re.sub('"receiver": "[^"]*"', '"receiver": null', file.read_text()))
    with pytest.raises(UserError, match="receiver: Input should be a valid string, not None"):
        Communicator.from_pretrained(saved)


def test_a_classs_own_import_may_fail_when_it_is_trusted(saved):
    for path, says in (
        ("nowhere.Fuser", "cannot be imported: No module"),
        ("torch.nn.Linear", "is no subclass of Fuser"),
    ):
        with pytest.raises(UserError, match=says):
            Communicator.from_pretrained(edited(saved, **fuser(path)), trust_remote_code=True)


def test_a_model_folder_that_is_gone_is_named_with_how_to_name_another(models, saved):
    gone = edited(saved, sharers=["/no/such/model"])
    with pytest.raises(UserError, match=r"model '/no/such/model': no such folder.*sharers=\[.*--model\.sharers"):
        Communicator.from_pretrained(gone)
    loaded = Communicator.from_pretrained(gone, sharers=[models[1]])
    assert loaded.config()["sharers"] == [models[1]]
    with pytest.raises(UserError, match=r"sharers is .*name 1"):
        Communicator.from_pretrained(gone, sharers=models[1:])


def test_a_run_that_was_moved_with_its_models_finds_them_by_their_relative_paths(models, saved, tmp_path):
    for name, model in zip(("receiver", "sharer"), models):
        shutil.copytree(model, tmp_path / "project" / "models" / name)
    shutil.copytree(saved, tmp_path / "project" / "runs" / "first" / "fuser")
    run = tmp_path / "project" / "runs" / "first"
    edited(run / "fuser", receiver="models/receiver", sharers=["models/sharer"])
    assert Communicator.from_pretrained(run).config()["receiver"] == str(tmp_path / "project" / "models" / "receiver")


def test_a_model_of_another_size_is_named(models, saved):
    with pytest.raises(UserError, match=rf"fuser '{saved}' does not fit its models.*meets .*{models[2]} with 4 layers"):
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
    assert Communicator.from_pretrained(str(tmp_path / "elsewhere")).fusers.layer_maps == loaded.fusers.layer_maps


def test_what_is_saved_is_readable_as_umask_says(models, tmp_path):
    before = os.umask(0o027)
    try:
        make(models[:2]).save_pretrained(tmp_path / "fuser")
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "fuser").iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}


def test_config_and_weights_appear_together_and_what_is_beside_them_stays(models, saved, tmp_path, monkeypatch):
    Path(saved, "README.md").touch()
    old = {file.name: file.read_bytes() for file in Path(saved).iterdir()}
    communicator = make(models[:2], gate=GateConfig(kind="open"))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("c2c_lightning.formats.fuser_folder.save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            communicator.save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in Path(saved).iterdir()} == old
    communicator.save_pretrained(saved)
    assert sorted(file.name for file in Path(saved).iterdir()) == sorted(old)
    assert Communicator.from_pretrained(saved).fusers.gates[0].config.kind == "open"
    assert [path.name for path in tmp_path.iterdir()] == ["fuser"]


def test_a_full_disk_is_told_in_one_message_and_leaves_what_was_there(models, saved):
    old = {file.name: file.read_bytes() for file in Path(saved).iterdir()}
    with full_disk(10_000), pytest.raises(UserError, match=r"fuser cannot be written: .*[Ff]ile too large"):
        make(models[:2]).save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in Path(saved).iterdir()} == old


def test_a_fuser_of_format_1_whose_matrices_lay_the_other_way_round_loads_as_it_was(models, tmp_path):
    make(models).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == 2
    config["fuser"]["class_path"] = "c2c_lightning.fuser.c2c.C2CFuser"  # as format 1 named it
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 1}))
    state = load_file(tmp_path / "model.safetensors")
    old = {name: t.mT.contiguous() if name.endswith(".weight") else t for name, t in state.items()}
    save_file(old, tmp_path / "model.safetensors")
    loaded = Communicator.from_pretrained(str(tmp_path)).fusers.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
