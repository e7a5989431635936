"""What a model is known by."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

from c2c_lightning.errors import UserError
from c2c_lightning.models.identity import fingerprint_of_files
from tests.models import tiny


@pytest.fixture
def folder(tmp_path):
    return tiny.save("llama", tmp_path / "model")


def test_a_copy_is_the_same_model_and_what_it_does_not_read_does_not_count(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a copy")
    (tmp_path / "copy" / "optimizer.pt").write_bytes(b"of its training")
    assert fingerprint_of_files(folder) == fingerprint_of_files(str(tmp_path / "copy"))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"])
def test_other_settings_tokens_or_templates_make_another_model(folder, file):
    before = fingerprint_of_files(folder)
    (folder / file).write_text((folder / file).read_text() + " ")
    assert fingerprint_of_files(folder) != before


def test_one_changed_number_under_the_old_name_makes_another_model(folder):
    before = fingerprint_of_files(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert fingerprint_of_files(folder) != before


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(UserError, match="model 'owner/no-such-model'"):
        fingerprint_of_files("owner/no-such-model")
