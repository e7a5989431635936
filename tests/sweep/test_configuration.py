"""A trial's configuration is the base with its values laid over."""

import shutil
from dataclasses import asdict, replace
from datetime import date

import pytest
import yaml

from c2c_lightning.cli.sweep import build, read_sweep, refuse_changes
from c2c_lightning.errors import UserError
from c2c_lightning.files import PROJECT
from c2c_lightning.sweep.configuration import check_configurations, merge
from c2c_lightning.sweep.driver import complete
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.space import Space
from c2c_lightning.sweep.trials import Trials
from tests.training.runs import BASE


@pytest.fixture
def base(tmp_path):
    files = {
        "a.yaml": "model: {receiver: r, gate: {kind: learned, init: 1.0}, layers: [0, 1], fuser: {class_path: A, x: 1}}",
        "b.yaml": "model: {optimizer: {lr: 0.1, gate_lr: '${model.optimizer.lr}'}}\ntrainer: {max_steps: 3}",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return [str(tmp_path / name) for name in files]


def test_later_files_and_values_win(base):
    merged = merge(base, {"trainer.max_steps": 5}, {"trainer.max_steps": 7, "model.optimizer.lr": 0.2})
    assert merged["trainer"] == {"max_steps": 7}
    assert merged["model"]["optimizer"] == {"lr": 0.2, "gate_lr": "${model.optimizer.lr}"}
    assert merged["model"]["receiver"] == "r"


def test_a_mapping_goes_into_what_is_there_and_a_list_replaces_it(base):
    merged = merge(base, {"model.gate": {"kind": "open"}, "model.layers": [3]})
    assert merged["model"]["gate"] == {"kind": "open", "init": 1.0}
    assert merged["model"]["layers"] == [3]


def test_another_class_does_not_inherit_the_arguments(base):
    merged = merge(base, {"model.fuser": {"class_path": "B", "y": 2}})
    assert merged["model"]["fuser"] == {"class_path": "B", "y": 2}


def test_the_same_class_keeps_the_arguments_it_has(base):
    merged = merge(base, {"model.fuser": {"class_path": "a.b.A", "y": 2}})
    assert merged["model"]["fuser"] == {"class_path": "a.b.A", "x": 1, "y": 2}


def test_one_layer_map_is_not_laid_into_another(base):
    merged = merge(base, {"model.layer_map": {0: 1, 1: 2}}, {"model.layer_map": {3: 3}})
    assert merged["model"]["layer_map"] == {3: 3}


def test_a_key_that_the_base_does_not_have_is_added(base):
    merged = merge(base, {"model.layer_map": {0: 1, 1: 2}, "data.init_args.seed": 3})
    assert merged["model"]["layer_map"] == {0: 1, 1: 2}
    assert merged["data"] == {"init_args": {"seed": 3}}


def test_a_missing_base_is_named():
    with pytest.raises(UserError, match=r"base names nowhere\.yaml: no such file"):
        merge(["nowhere.yaml"])


def test_the_trials_of_a_sweep_take_the_day_on_which_it_began_for_today(tmp_path):
    receiver = shutil.copytree(PROJECT / "c2c_lightning" / "nano" / "receiver", tmp_path / "receiver")
    template = receiver / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}\n" + template.read_text())
    receivers = {"model.receiver": {"grid": ["c2c_lightning/nano/receiver", str(receiver)]}}
    begun, today = tmp_path / "sweep.yaml", date.today().isoformat()

    def check(**settings) -> Sweep:
        begun.write_text(yaml.safe_dump({"base": BASE, **settings}))
        sweep, _ = read_sweep(["--config", str(begun)])
        sweep = replace(sweep, date=check_configurations(sweep, Space(sweep.space), build))
        begun.write_text(yaml.safe_dump(asdict(sweep)))  # as a sweep that begins does
        refuse_changes(read_sweep(["--config", str(begun)])[0], tmp_path)
        return sweep

    assert check(space={"model.gate.init": {"grid": [0.5]}}).date is None  # no template asks
    assert check(space=receivers).date in (today, date.today().isoformat())
    assert check(space=receivers, fixed={"model.chat.date": "2025-02-07"}).date == "2025-02-07"
    sweep = check(space=receivers, date="2025-02-07")
    assert sweep.date == "2025-02-07"
    trial = Trials(tmp_path, complete(sweep, Space(sweep.space))).next()
    assert yaml.safe_load((trial.folder / "trial.yaml").read_text())["model"]["chat"] == {"date": "2025-02-07"}


def test_a_base_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"the base .*broken\.yaml is no YAML"):
        merge([str(tmp_path / "broken.yaml")])


def test_a_sampled_value_that_names_a_class_stays_a_configuration(tmp_path):
    fusers = [{"class_path": "c2c_lightning.fuser.C2CFuser", "init_args": {"hidden": size}} for size in (16, 32)]
    file = tmp_path / "fusers.yaml"
    file.write_text(yaml.safe_dump({"base": "conf/base.yaml", "space": {"model.fuser": {"grid": fusers}}}))
    sweep, _ = read_sweep(["--config", str(file)])
    assert sweep.space == {"model.fuser": {"grid": fusers}}
