"""The command line: what is typed wins, and what is wrong gets one message."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from c2c_lightning.cli.commands import main
from c2c_lightning.cli.fit import C2CCLI, WIRING

PROJECT = Path(__file__).parents[2]
BASE = f"--config={PROJECT / 'conf' / 'base.yaml'}"
EVALUATION = str(PROJECT / "conf" / "eval" / "nano.yaml")
RECEIVER = PROJECT / "c2c_lightning" / "nano" / "receiver"
pytestmark = pytest.mark.usefixtures("workspace")


def parsed(*args: str) -> C2CCLI:
    return C2CCLI(**WIRING, run=False, args=[BASE, *args])


def message(*args: str) -> str:
    """What the command says when it refuses."""
    with pytest.raises(SystemExit) as refused:
        main(args)
    assert isinstance(refused.value.code, str), "an exit code of 1 comes with a message"
    assert refused.value.code.startswith("error: ")
    return refused.value.code


def test_later_files_win_over_earlier_ones_and_what_is_typed_over_files(workspace):
    (workspace / "mine.yaml").write_text("model: {gate: {init: 0.5, sparsity: 0.1}}\n")
    gate = parsed("--config=mine.yaml", "--model.gate.sparsity=0.2").config.model.gate
    assert (gate.init, gate.sparsity) == (0.5, 0.2)
    assert gate.kind == "learned"


def test_a_file_may_be_named_before_the_command(workspace):
    (workspace / "mine.yaml").write_text("fit: {model: {receiver: ./nowhere, sharers: [./nowhere]}}\n")
    assert "'./nowhere': no such folder" in message("--config=mine.yaml", "fit", "--data=NanoData")
    assert "'./nowhere': no such folder" in message("--config", "mine.yaml", "fit", "--data=NanoData")


def test_a_typed_value_reaches_what_is_interpolated_from_it(workspace):
    (workspace / "mine.yaml").write_text(
        'model: {optimizer: {lr: 1.0e-4, gate_lr: "${model.optimizer.lr}"}}\ntrainer: {max_steps: 7}\n'
    )
    assert parsed("--config=mine.yaml").config.model.optimizer.gate_lr == 1e-4
    assert parsed("--config=mine.yaml", "--model.optimizer.lr=0.25").config.model.optimizer.gate_lr == 0.25


def test_a_layer_map_and_a_list_of_layers_can_be_typed():
    model = parsed("--model.layer_map={0: 5, 3: 1}", "--model.layers=[0, 3]").model
    model.configure_model()
    assert model.communicator.fusers.layer_maps == [{0: 5, 3: 1}]
    assert parsed("--model.layers=every:2").config.model.layers == "every:2"


def test_a_fuser_of_ones_own_is_named_by_its_import_path(workspace, monkeypatch):
    (workspace / "mine.py").write_text(
        "from c2c_lightning.fuser import C2CFuser\n\n\nclass MyFuser(C2CFuser):\n    pass\n"
    )
    monkeypatch.syspath_prepend(workspace)
    model = parsed("--model.fuser=mine.MyFuser", "--model.fuser.init_args.hidden=8").model
    model.configure_model()
    assert type(model.communicator.fusers[0]).__name__ == "MyFuser"


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--model.recever=x", "model.receiver"),
        ("--model.gate.nois=gumbel", "model.gate.noise"),
        ("--trainer.max_stepz=3", "trainer.max_steps"),
        ("--model.fuser.init_args.hiden=3", "hidden"),
        ("--data.init_args.batch_sise=3", "batch_size"),
        ("--data=NanoDat", "NanoData"),
        ("--model.fuser=RigdeFuser", "RidgeFuser"),
        ("--model.fuser=c2c_lightning.fuser.RigdeFuser", "RidgeFuser"),
    ],
)
def test_a_misspelt_name_gets_the_one_that_was_meant(argument, meant):
    assert f"Did you mean {meant}?" in message("fit", BASE, argument)


def test_a_misspelt_key_in_a_file_gets_the_one_that_was_meant(workspace):
    (workspace / "mine.yaml").write_text("model: {gate: {kynd: open}}\n")
    assert "Did you mean model.gate.kind?" in message("fit", BASE, "--config=mine.yaml")


def test_a_misspelt_command_gets_the_one_that_was_meant():
    assert "Did you mean fit?" in message("fti", BASE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--model.receiver=./nowhere"], "'./nowhere': no such folder"),
        (["--model.sharers=[]"], "model.sharers is empty"),
        (["--data.init_args.batch_size=0"], "data.batch_size is 0: it must be at least 1"),
        (["--model.gate.noise=gumble"], "gumble"),
        (["--model.layers=first:x"], "model.layers is 'first:x'"),
        (["--model.layer_map={0: 9}"], "sharer layer 9"),
        (["--model.fuser.init_args.num_layers=2"], "num_layers is 2"),
        (["--model.gate.kind=fixed", "--model.gate.open_layers=[]"], "nothing to train"),
        (["--model.optimizer.lr=0"], "model.optimizer.lr is 0.0: it must be positive"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["--ckpt_path=last"], "there is no run in"),
        (["--ckpt_path=."], "neither a run with a checkpoint nor a sharded one"),
        (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches is 0"),
        (["--trainer.devices=0"], "devices"),
        (["--trainer.devices=-2"], "devices"),
        (["--trainer.devices=abc"], "devices"),
        (["--trainer.devices=999"], "trainer.devices is 999, but there are"),
        (["--trainer.accelerator=warp"], "invalid accelerator name"),
        (["--trainer.strategy=nope"], "invalid strategy name"),
        (["--trainer.num_nodes=0"], "num_nodes"),
        (["--trainer.precision=9"], "trainer.precision is 9"),
        (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val is -1"),
        (["--trainer.gradient_clip_val=.nan"], "trainer.gradient_clip_val is nan"),
        (["--trainer.limit_train_batches=0"], "trainer.limit_train_batches is 0"),
        (["--trainer.max_steps=0"], "trainer.max_steps is 0, so nothing would be trained"),
        (["--trainer.max_epochs=0"], "trainer.max_epochs is 0, so nothing would be trained"),
        (["--trainer.min_steps=400"], "trainer.min_steps is 400, but trainer.max_steps is 300"),
        (["--trainer.log_every_n_steps=-1"], "trainer.log_every_n_steps is -1: it must be at least 0"),
        (["--trainer.num_sanity_val_steps=-5"], "trainer.num_sanity_val_steps is -5: it must be at least -1"),
        (["--trainer.val_check_interval=x"], "trainer.val_check_interval is 'x'"),
        (["--trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch is 0"),
        (["--seed_everything=-1"], "seed_everything is -1"),
        (["--seed_everything=99999999999"], "seed_everything is 99999999999"),
        (["--model.fuser=c2c_lightning.fuser.Fuser"], "which is abstract"),
        (["--model.fuser.init_args.hidden=null"], "fuser hidden is None"),
        (["--model.fuser.init_args.hidden=100000000000"], "model.fuser is too large for the memory"),
        (
            ["--model.template_kwargs={at: !!set {a, b}}"],
            "model.template_kwargs or model.fuser has what JSON has not: Object of type set",
        ),
        (["--model.gate.temperature=[.nan,1]"], "gate.temperature is [nan, 1.0]"),
        (["--model.gate.temperature=[1,.inf]"], "gate.temperature is [1.0, inf]"),
        (["--model.layers=[0,0]"], "names a layer twice"),
        (["--model.layers=first:99"], "but the receiver has 4 layers"),
        (["--model.optimizer.lr=.nan"], "model.optimizer.lr is nan"),
        (["--model.dtype=float17"], "float17"),
        (["--data=InstructionData", "--data.init_args.path=nowhere.jsonl"], "'nowhere.jsonl': no such file"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_wrong_input_gets_one_message_and_leaves_nothing(arguments, says, workspace):
    assert says in message("fit", BASE, *arguments)
    assert not [file for file in workspace.rglob("*") if file.name not in ("runs", ".lock")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'model: {receiver: "\xff"}', "mine.yaml is no configuration: 'utf-8' codec"),
        (b'model: {dtype: "${nope.x}"}', "model.dtype: Interpolation key"),
        (b'model: {dtype: "${oc.env:NOT_SET}"}', "Environment variable 'NOT_SET' not found"),
        (b'model: {dtype: "${nope:1}"}', "model.dtype: Unsupported interpolation type nope"),
        (b'model: {dtype: "${unclosed"}', "model.dtype: "),
        (b'model: {dtype: "${model.receiver}", receiver: "${model.dtype}"}', "Recursive interpolation"),
        (b"model: {template_kwargs: {price: '\\${five}'}}", "a text with ${ in it cannot be written"),
        (b"model: {gate: {init: 1" + b"0" * 400 + b"}}", "too large"),
        (b"trainer: {max_steps: 1" + b"0" * 400 + b"}", "trainer.max_steps has 401 digits"),
        (b"trainer: {max_steps: 1" + b"0" * 5000 + b"}", "mine.yaml is no configuration: Exceeds the limit"),
        (b"trainer: {callbacks: [{class_path: os.path.join}]}", "os.path.join does not correspond to a subclass"),
        (b"data: [1, 2]", "data is [1, 2]: Not a valid subclass of InstructionData"),
        (b"model: &a {template_kwargs: *a}", "mine.yaml is no configuration: maximum recursion depth"),
        (b"[" * 3000, "mine.yaml"),
        (b"- a", "mine.yaml"),
        (b"a: [", "mine.yaml"),
    ],
)
def test_a_file_that_is_no_configuration_gets_one_message(text, says, workspace):
    (workspace / "mine.yaml").write_bytes(text)
    assert says in message("fit", BASE, "--config=mine.yaml")
    assert not (workspace / "runs").exists()


def test_a_model_folder_without_tokenizer_or_chat_template_is_refused(workspace):
    for name in ("bare", "silent"):
        shutil.copytree(RECEIVER, workspace / name)
    for file in (workspace / "bare").glob("*token*"):
        file.unlink()
    (workspace / "silent" / "chat_template.jinja").unlink()
    assert "'bare' has no tokenizer" in message("fit", BASE, "--model.receiver=bare")
    assert "'silent' has no chat template" in message("fit", BASE, "--model.receiver=silent")


def test_an_empty_dataset_is_refused(workspace):
    (workspace / "empty.jsonl").touch()
    said = message("fit", BASE, "--data=InstructionData", "--data.init_args.path=empty.jsonl")
    assert "'empty.jsonl' has no records" in said


def test_a_corrupt_or_foreign_checkpoint_is_refused(workspace):
    (workspace / "corrupt.ckpt").write_bytes(b"\x80\x02 not a checkpoint")
    assert "damaged or no checkpoint" in message("fit", BASE, "--ckpt_path=corrupt.ckpt")
    torch.save({"state_dict": {}}, workspace / "foreign.ckpt")
    assert "not written by c2c_lightning" in message("fit", BASE, "--ckpt_path=foreign.ckpt")


def test_a_stream_needs_to_be_told_when_to_stop(workspace):
    (workspace / "data.jsonl").write_text('{"question": "Who?", "answer": "Nobody."}\n' * 4)
    arguments = ["--data=InstructionData", "--data.init_args.path=data.jsonl", "--data.init_args.streaming=true"]
    said = message("fit", BASE, *arguments, "--trainer.max_steps=-1", "--trainer.max_epochs=1")
    assert "set trainer.max_steps" in said


def test_ctrl_c_before_anything_has_begun_leaves_no_traceback(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("c2c_lightning.cli.commands.run", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["fit"])
    assert end.value.code == 130


def test_what_is_unforeseen_ends_in_one_line_and_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("c2c_lightning.training.module.load_aligner", lambda *_: int("not ours"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["fit", BASE])
    monkeypatch.delenv("C2C_TRACEBACK")
    with pytest.raises(SystemExit) as ended:
        main(["fit", BASE])
    said = ended.value.code
    assert said.startswith("unexpected error in fit: ValueError: invalid literal for int() with base 10: 'not ours' (")
    assert "C2C_TRACEBACK=1 shows the traceback" in said
    assert "\n" not in said
    kept = Path(re.search(r"(\S+) keeps it", said)[1])
    assert kept.read_text().startswith("Traceback")
    kept.unlink()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["convert", "file/in", "--out=x"], "file/in"),
        (["consolidate", "file/in"], "file/in"),
        (["report", "file/in"], "file/in"),
        (["lm-eval", "--fuser=file/in", "--tasks=arc_easy"], "file/in"),
        (["fit", BASE, f"--trainer.default_root_dir={'x' * 300}"], "File name too long"),
        (["fit", BASE, "--trainer.default_root_dir=file/in"], "file/in"),
        (["test", "--config", EVALUATION, "--model.fuser=file/in"], "file/in"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_path_that_cannot_be_is_said_in_one_message(command, says, workspace):
    (workspace / "file").touch()
    assert says in message(*command)


def test_without_a_command_all_commands_are_listed(capsys):
    main([])
    assert "lm-eval" in capsys.readouterr().out


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_of_the_output_may_stop_reading(buffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "c2c_lightning", "--help"]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started.stdout.close()
    assert started.stderr.read() == b""
    started.stderr.close()
    assert started.wait() in (0, 128 + signal.SIGPIPE)


def test_a_folder_that_holds_a_run_is_not_written_over(workspace):
    (workspace / "mine").mkdir()
    for name in ("config.yaml", "summary.json"):
        (workspace / "mine" / name).touch()
    assert "mine already holds a run" in message("fit", BASE, "--trainer.default_root_dir=mine")
