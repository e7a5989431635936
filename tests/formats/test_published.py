"""Published fusers: read into ours and written back bit for bit, and nothing else is read."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from c2c_lightning.cli.commands import main
from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.formats.fuser_folder import read_fuser, write_fuser_folder
from c2c_lightning.formats.published import read_published, write_published
from c2c_lightning.fuser import C2CFuser, GateConfig
from c2c_lightning.models.loading import kv_shape, load_config
from tests.models import tiny

RECEIVER, SHARER = "c2c_lightning/nano/receiver", "c2c_lightning/nano/sharer"
R, S = (kv_shape(load_config(name)) for name in (RECEIVER, SHARER))
HIDDEN, INTERMEDIATE, DEPTH = 12, 20, 4
INIT_ARGS = {
    "source_dim": S.head_dim,
    "target_dim": R.head_dim,
    "source_num_heads": S.num_kv_heads,
    "target_num_heads": R.num_kv_heads,
    "hidden_dim": HIDDEN,
    "intermediate_dim": INTERMEDIATE,
    "num_layers": DEPTH,
    "final_temperature": 0.01,
    "dtype": {"__type__": "torch.dtype", "value": "bfloat16"},
}


class Block(nn.Module):
    def __init__(self, inner: int):
        super().__init__()
        self.norm, self.w1, self.w2 = nn.Module(), nn.Linear(HIDDEN, inner, False), nn.Linear(inner, HIDDEN, False)
        self.norm.weight = nn.Parameter(1 + 0.1 * torch.randn(HIDDEN))

    def forward(self, x):
        normed = F.rms_norm(x, (HIDDEN,), self.norm.weight, 1e-6)
        return x + self.w2(F.gelu(self.w1(normed)))


class Blocks(nn.Module):
    def __init__(self, *inner: int):
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, inner))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Projector(nn.Module):
    """One layer of a published fuser, as its format is described."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gate_temperature", torch.tensor(0.37))
        for part in ("key", "value"):
            self.register_parameter(f"{part}_gate_logit", nn.Parameter(torch.randn(())))
            for name, module in {
                "in": nn.Linear(S.features + R.features, HIDDEN),
                "mlp1": Blocks(INTERMEDIATE),
                "scalar_mlp2": Blocks(HIDDEN),
                "scalar_head": nn.Linear(HIDDEN, R.num_kv_heads),
                "proj_mlp2": Blocks(*[INTERMEDIATE] * (DEPTH - 2)),
                "proj_out": nn.Linear(HIDDEN, R.features),
            }.items():
                self.add_module(f"{part}_{name}", module)

    def forward(self, part, sharer, receiver):
        """Features of tokens (T, F) in, fused features of the receiver out."""
        own = {name.removeprefix(f"{part}_"): m for name, m in self.named_children() if name.startswith(part)}
        h = own["mlp1"](own["in"](torch.cat([sharer, receiver], -1)))
        weight = torch.sigmoid(own["scalar_head"](own["scalar_mlp2"](h)))
        update = own["proj_out"](own["proj_mlp2"](h)).unflatten(-1, (R.num_kv_heads, -1))
        # The gate is in fp32 and has dimensions, so that the product is too, until it is rounded once into the cache.
        gate = (getattr(self, f"{part}_gate_logit") > 0).float().reshape(1, 1, 1, 1)
        return (receiver.float() + (gate * weight[..., None] * update).flatten(-2)).to(receiver.dtype)


LAYER_MAP = {layer: min(max(layer + S.num_layers - R.num_layers, 0), S.num_layers - 1) for layer in range(R.num_layers)}


@pytest.fixture
def projectors():
    torch.manual_seed(0)
    return [Projector() for _ in LAYER_MAP]


@pytest.fixture
def published(tmp_path, projectors) -> Path:
    """A published fuser: weights in bf16 but for the first gate, numbered otherwise than the layers."""
    folder = tmp_path / "published"
    (folder / "final").mkdir(parents=True)
    recipe = {"model": {"base_model": RECEIVER, "teacher_model": SHARER, "mapping": "last_aligned"}, "data": {"x": 1}}
    (folder / "config.json").write_text(json.dumps(recipe))
    numbers = {layer: len(LAYER_MAP) - 1 - layer for layer in LAYER_MAP}
    pairs = {str(r): [[s, numbers[r]], [0, 0]] for r, s in LAYER_MAP.items()}
    (folder / "final" / "projector_config.json").write_text(json.dumps({"0": {"1": pairs}}))
    for layer, i in numbers.items():
        state = {name: tensor.to(torch.bfloat16) for name, tensor in projectors[layer].state_dict().items()}
        state["key_gate_logit"] = state["key_gate_logit"].float() + 1e-5
        projectors[layer].load_state_dict(state)
        torch.save(state, folder / "final" / f"projector_{i}.pt")
        spec = {"class": "C2CProjector", "init_args": INIT_ARGS}
        (folder / "final" / f"projector_{i}.json").write_text(json.dumps(spec))
    return folder


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: torch.load(file, weights_only=True) for file in sorted(folder.rglob("*.pt"))}


def texts(folder: Path) -> dict[str, object]:
    return {str(f.relative_to(folder)): json.loads(f.read_text()) for f in sorted(folder.rglob("*.json"))}


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, state in theirs.items():
        assert ours[name].keys() == state.keys()
        for key, tensor in state.items():
            assert ours[name][key].dtype == tensor.dtype
            assert torch.equal(ours[name][key], tensor)


def test_import_then_export_gives_back_every_tensor_and_every_configuration_file(published, tmp_path):
    main(["convert", "--source", str(published), "--out", str(tmp_path / "ours")])
    main(["convert", "--source", str(tmp_path / "ours"), "--out", str(tmp_path / "back")])
    assert_same_tensors(states(tmp_path / "back"), states(published))
    assert texts(tmp_path / "back") == texts(published)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_imported_fuser_gives_exactly_what_the_format_describes_layer_by_layer(published, projectors, dtype):
    for file in published.rglob("projector_?.json"):
        spec = json.loads(file.read_text())
        spec["init_args"]["dtype"]["value"] = str(dtype).removeprefix("torch.")
        file.write_text(json.dumps(spec))
    projectors = [projector.to(dtype) for projector in projectors]
    fuser = Communicator.from_pretrained(str(published)).fusers[0]
    sharer = torch.randn(2, R.num_layers, 3, S.num_kv_heads, 5, S.head_dim).to(dtype)
    receiver = torch.randn(2, R.num_layers, 3, R.num_kv_heads, 5, R.head_dim).to(dtype)
    fused = fuser(sharer, receiver)
    open_gates = 0
    for layer, projector in enumerate(projectors):
        for p, part in enumerate(("key", "value")):
            ours, read, wanted = (stack[p, layer].transpose(1, 2).flatten(2) for stack in (fused, sharer, receiver))
            assert torch.equal(ours, projector(part, read, wanted))
            open_gates += not torch.equal(ours, wanted)
    assert 0 < open_gates < 2 * R.num_layers


def test_export_then_import_gives_back_every_tensor_and_the_same_logits(tmp_path):
    torch.manual_seed(0)
    made = Communicator.from_pretrained(str(native(tmp_path / "ours")))
    main(["convert", "--source", str(tmp_path / "ours"), "--out", str(tmp_path / "theirs")])
    main(["convert", "--source", str(tmp_path / "theirs"), "--out", str(tmp_path / "again")])
    again = Communicator.from_pretrained(str(tmp_path / "again"))
    assert made.fusers.state_dict().keys() == again.fusers.state_dict().keys()
    for name, tensor in made.fusers.state_dict().items():
        assert torch.equal(again.fusers.state_dict()[name], tensor)
    assert again.models.aligner.alignment == made.models.aligner.alignment == "spans"
    assert again.fusers.gates[0].config == made.fusers.gates[0].config
    conversation = [[{"role": "user", "content": "Where does Ribigo live?"}]]
    with torch.no_grad():
        logits = [
            c.generate_ids(
                c.models.collate(conversation), max_new_tokens=3, output_logits=True, return_dict_in_generate=True
            )
            for c in (made, again)
        ]
    for first, second in zip(logits[0].logits, logits[1].logits, strict=True):
        assert torch.equal(first, second)


def native(folder: Path, **changes) -> Path:
    """A fuser of ours with random weights."""
    made = tiny.between(
        RECEIVER,
        [SHARER],
        fuser=lambda *shapes: C2CFuser(*shapes, hidden=HIDDEN),
        gate=GateConfig(**changes),
        layers="last:3",
    )
    with torch.no_grad():
        for gate in made.fusers.gates:
            if gate.learns:
                gate.logit.copy_(torch.randn_like(gate.logit))
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "open"}, "gates of kind open"),
        ({"parts": "keys"}, "fuses keys"),
        ({"granularity": "head"}, "a gate for every head"),
    ],
)
def test_a_fuser_that_the_format_has_not_is_refused_and_nothing_is_written(tmp_path, changes, says):
    config, state = read_fuser(str(native(tmp_path / "ours", **changes)))
    with pytest.raises(UserError, match=says):
        write_published(tmp_path / "theirs", config, state)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ours"]


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def damage(final: Path, how: str) -> None:
    weights, sizes = final / "projector_1.pt", final / "projector_1.json"
    state, spec = torch.load(weights, weights_only=True), json.loads(sizes.read_text())
    match how:
        case "a file is missing":
            weights.unlink()
        case "a file is surplus":
            shutil.copy(weights, final / "projector_9.pt")
        case "a tensor is missing":
            del state["value_in.bias"]
        case "a tensor is surplus":
            state["value_in.scale"] = torch.ones(1)
        case "a shape":
            state["key_in.weight"] = state["key_in.weight"].T
        case "a class":
            spec["class"] = "LinearProjector"
        case "an argument":
            spec["init_args"]["hiden_dim"] = spec["init_args"].pop("hidden_dim")
        case "other sizes":
            spec["init_args"]["num_layers"] = 3
        case "no number":
            state["value_in.bias"][0] = torch.nan
        case "a model that is a number" | "a section that is a word" | "a gate that is none":
            recipe = {
                "a model that is a number": {"model": {"base_model": 7}},
                "a section that is a word": {"c2c_lightning": "x"},
                "a gate that is none": {"c2c_lightning": {"gate": {"kind": "learnt"}}},
            }[how]
            file = final.parent / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | recipe))
            return
        case (
            "heads" | "a size in words" | "a share above 1" | "a dtype" | "layers without end" | "a width beyond memory"
        ):
            name, value = {
                "layers without end": ("num_layers", 10**9),
                "a width beyond memory": ("hidden_dim", 10**8),
                "heads": ("source_num_heads", spec["init_args"]["source_num_heads"] + 1),
                "a size in words": ("hidden_dim", "wide"),
                "a share above 1": ("dropout", 1.5),
                "a dtype": ("dtype", "float12"),
            }[how]
            for file in final.glob("projector_?.json"):
                changed = json.loads(file.read_text())
                changed["init_args"][name] = value
                file.write_text(json.dumps(changed))
            return
        case "a layer":
            file = final / "projector_config.json"
            file.write_text(file.read_text().replace('"0": [[', '"77": [['))
            return
        case "no map":
            (final / "projector_config.json").write_text('{"0": {"2": {}}}')
            return
        case "no JSON":
            sizes.write_text("{")
            return
    if how == "a pickle":
        weights.write_bytes(pickle.dumps(Harmful(), protocol=2))
    elif how == "a pickle in torch's wrapping":
        torch.save({"key_in.weight": Harmful()}, weights)
    elif weights.exists():
        torch.save(state, weights)
        sizes.write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("a file is missing", r"lacks projector_1\.pt"),
        ("a file is surplus", r"surplus projector_9\.pt"),
        ("a tensor is missing", r"projector_1\.pt: it lacks value_in\.bias"),
        ("a tensor is surplus", r"projector_1\.pt: it has a surplus value_in\.scale"),
        ("a shape", r"projector_1\.pt: key_in\.weight is"),
        ("a class", r"projector_1\.json is damaged: class: .*'LinearProjector'"),
        ("an argument", r"projector_1\.json is damaged: init_args\.hiden_dim: Extra.*takes .*hidden_dim"),
        ("other sizes", r"projector_1\.json differs from projector_0\.json"),
        ("heads", r"made for a sharer with"),
        ("a size in words", r"projector_0\.json is damaged: init_args\.hidden_dim: .*integer, not 'wide'"),
        ("a share above 1", r"projector_0\.json is damaged: init_args\.dropout: Input should be less than 1, not 1\.5"),
        ("a dtype", r"have dtype 'float12': it must be float32, bfloat16, float16"),
        ("a layer", r"projector_config\.json: names receiver layer 77"),
        ("no map", r"projector_config\.json is damaged: 0\.1: Field required"),
        ("no JSON", r"projector_1\.json is damaged: Invalid JSON"),
        ("layers without end", r"its config makes more than the [0-9]+ tensors"),
        ("a width beyond memory", r"projector_0\.pt: key_in\.weight is"),
        ("no number", r"projector_1\.pt: value_in\.bias has values that are not finite"),
        ("a model that is a number", r"config\.json is damaged: model\.base_model: .*string, not 7"),
        ("a section that is a word", r"config\.json is damaged: c2c_lightning: .*dictionary, not 'x'"),
        ("a gate that is none", r"config\.json: c2c_lightning: its gate is damaged: kind"),
        ("a pickle", r"projector_1\.pt is damaged, or holds more than plain tensors"),
        ("a pickle in torch's wrapping", r"projector_1\.pt is damaged, or holds more than plain tensors"),
    ],
)
def test_a_damaged_one_gets_one_message_and_nothing_is_executed_or_written(
    published, tmp_path, monkeypatch, capsys, how, says
):
    monkeypatch.chdir(tmp_path)
    damage(published / "final", how)
    with pytest.raises(SystemExit) as refusal:
        main(["convert", "--source", str(published), "--out", str(tmp_path / "ours")])
    assert re.search(says, str(refusal.value))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["published"]


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({}, ""),
        (7, r"section published is damaged: Input should be a valid dictionary, not 7"),
        ({"recipe": None}, r"section published is damaged: projector_config: Field required"),
        ("another's layers", "section published is of another fuser: its layers or projectors"),
    ],
)
def test_what_was_kept_of_an_import_is_checked_before_it_is_written(published, tmp_path, kept, says):
    config, state = read_published(published)
    if kept == "another's layers":
        kept = {**config["published"], "projector_config": {"0": {"1": {"0": [[0, 0]]}}}}
    config["published"] = kept
    if not says:
        write_published(tmp_path / "theirs", config, state)
        return
    with pytest.raises(UserError, match=says):
        write_published(tmp_path / "theirs", config, state)
    assert not (tmp_path / "theirs").exists()


def test_a_place_that_cannot_be_written_to_is_told(published, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "out", Path("/proc/nope")):
        with pytest.raises(SystemExit, match=rf"{place} cannot be written"):
            main(["convert", "--source", str(published), "--out", str(place)])


def test_models_that_were_moved_are_named_anew(published, tmp_path):
    recipe = {"model": {"base_model": "/gone/receiver", "teacher_model": "/gone/sharer"}}
    (published / "config.json").write_text(json.dumps(recipe))
    with pytest.raises(SystemExit, match=r"model '/gone/sharer': no such folder.*--sharer of convert"):
        main(["convert", "--source", str(published), "--out", str(tmp_path / "ours")])
    models = ["--receiver", RECEIVER, "--sharer", SHARER]
    main(["convert", "--source", str(published), "--out", str(tmp_path / "ours"), *models])
    assert Communicator.from_pretrained(published, receiver=RECEIVER, sharers=[SHARER]).fusers.layer_maps == [LAYER_MAP]


def test_models_are_named_by_the_recipe_or_by_the_user(published):
    (published / "config.json").unlink()
    with pytest.raises(UserError, match=r"does not say which models.*--receiver"):
        read_published(published)
    config, _ = read_published(published / "final", RECEIVER, SHARER)
    assert (config["receiver"], config["sharers"]) == (RECEIVER, [SHARER])


def test_a_dtype_may_be_written_as_a_word(published):
    for file in (published / "final").glob("projector_?.json"):
        spec = json.loads(file.read_text())
        spec["init_args"]["dtype"] = "torch.bfloat16"
        file.write_text(json.dumps(spec))
    config, _ = read_published(published)
    assert config["fuser"]["init_args"]["evaluate_in"] == "bfloat16"


def test_what_is_there_is_not_written_over(published, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(SystemExit, match="is there already"):
        main(["convert", "--source", str(published), "--out", str(tmp_path / "ours")])


def test_a_fuser_folder_keeps_what_has_no_place_in_ours(published, tmp_path):
    write_fuser_folder(tmp_path / "ours", *read_published(published))
    config, _ = read_fuser(str(tmp_path / "ours"))
    assert config["layer_map"] == LAYER_MAP
    assert config["published"]["recipe"]["data"] == {"x": 1}
