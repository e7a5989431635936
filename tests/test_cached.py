"""A text that was read once: what a file gives is what the text gives, and a file that does not fit is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from c2c_lightning import Cached, Communicator
from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from c2c_lightning.formats.cached import DIGEST, KEY, read_cache
from c2c_lightning.formats.fuser_folder import weights_digest
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import Handed, RidgeMapper
from c2c_lightning.mapper.handed import BITS, pack
from c2c_lightning.models import FrozenModels, load_aligner, load_models

PAIR = "c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"]
TEXT, OTHER = "The home town of Zoruba is Cairo. Everybody knows that.\n", "The home town of Ribigo is Oslo."
QUESTIONS = [
    [{"role": "user", "content": f"In which country does {name} live?"}] for name in ("Zoruba", "Ribigo", "Al")
]
SETTINGS = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model() -> Communicator:
    """The built-in pair with a mapper that makes something else of every text."""
    models = FrozenModels(*load_models(*PAIR), load_aligner(*PAIR))
    fusers = Fusers(models.receiver_shape, models.sharer_shapes, fuser=None, mapper=RidgeMapper)
    torch.nn.init.normal_(fusers.mapper.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return Communicator(models, fusers).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """With a fuser, a text, and the file that `read` makes of it."""
    folder = tmp_path_factory.mktemp("cached")
    model.save_pretrained(folder / "fuser")
    (folder / "report.txt").write_text(TEXT)
    main(["read", "--fuser", f"{folder / 'fuser'}", "--text", f"{folder / 'report.txt'}", "--out", f"{folder / 'a'}"])
    return folder


def logits(model: Communicator, conversations, contexts) -> torch.Tensor:
    """Of the first tokens of the responses."""
    told = [[{**turns[0], "private": context}] for turns, context in zip(conversations, contexts)]
    return torch.stack(model.generate_ids(model.read(told), **SETTINGS).logits)


def test_a_file_gives_to_the_bit_what_its_text_gives_without_the_sharer(model, folder):
    fresh, passes = Communicator.from_pretrained(folder / "fuser"), []
    handle = fresh.models.sharers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    handed = Cached(folder / "a").handed(fresh.made_with())
    assert torch.equal(logits(fresh, QUESTIONS[:1], [handed]), logits(model, QUESTIONS[:1], [TEXT]))
    answers = fresh.generate(QUESTIONS, context=Cached(folder / "a"), max_new_tokens=4)
    assert not passes
    handle.remove()
    assert answers == model.generate(QUESTIONS, context=TEXT, max_new_tokens=4)
    assert not torch.equal(logits(model, QUESTIONS[:1], [OTHER]), logits(model, QUESTIONS[:1], [TEXT]))


def test_the_receiver_alone_answers_from_a_file(model, folder):
    shutil.copytree(folder / "fuser", alone := folder / "alone")
    config = json.loads((alone / "config.json").read_text())
    (alone / "config.json").write_text(json.dumps({**config, "sharers": ["./nowhere"]}))
    fresh = Communicator.from_pretrained(alone, sharers=[])
    assert not len(fresh.models.sharers)
    answers = fresh.generate(QUESTIONS, context=[Cached(folder / "a"), None, None], max_new_tokens=4)
    assert answers == model.generate(QUESTIONS, context=[TEXT, None, None], max_new_tokens=4)
    with pytest.raises(UserError, match="only the receiver is loaded: give a Cached one"):
        fresh.generate(QUESTIONS[0], context=TEXT)
    with pytest.raises(UserError, match="only the receiver is loaded: leave sharers out"):
        fresh.save_text(TEXT, folder / "b")
    Communicator.fresh(model.models).save_pretrained(folder / "fuses")
    with pytest.raises(UserError, match="fuses what sharers read: leave sharers out"):
        Communicator.from_pretrained(folder / "fuses", sharers=[])


def test_files_and_texts_and_nothing_stand_side_by_side(model, folder):
    handed = Cached(folder / "a").handed(model.made_with())
    texts = logits(model, QUESTIONS, [TEXT, OTHER, None])
    torch.testing.assert_close(logits(model, QUESTIONS, [handed, OTHER, None]), texts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model, QUESTIONS, [TEXT, OTHER, None])[:, 1:], texts[:, 1:])
    mixed = model.generate(QUESTIONS, context=[Cached(folder / "a"), OTHER, None], max_new_tokens=4)
    assert mixed == model.generate(QUESTIONS, context=[TEXT, OTHER, None], max_new_tokens=4)
    assert model.generate(QUESTIONS, fuse=False, context=Cached(folder / "nowhere")) == model.generate(
        QUESTIONS, fuse=False
    )


def test_tokens_that_are_kept_stand_where_they_would_stand_and_what_follows_behind_all_of_them(model):
    def filled(handed):
        batch = model.models.collate([[{**QUESTIONS[0][0], "private": each}] for each in (handed, OTHER)])
        return batch, model.prefill(batch)

    batch, whole = filled(TEXT)
    entries = model.read(batch).with_mapper(model.fusers.mapper).mapped[:, :, : int(batch.private.numbers[0])]
    handed = Handed.of(pack(entries, 32, keep=5), 32, entries.shape[2])
    assert handed.kept.tolist() != list(range(5))
    assert len(handed.kept) == 5
    shorter, cache = filled(handed)
    for layer, of_all in zip(cache.layers, whole.layers):
        at, number = int(batch.private.heads[0]), entries.shape[2]
        length, less = int(batch.prompt_mask[0].sum()) - 1, int(shorter.prompt_mask[0].sum()) - 1
        keys, all_keys = layer.keys[0, :, -less:], of_all.keys[0, :, -length:]
        torch.testing.assert_close(keys[:, at : at + 5], all_keys[:, at + handed.kept])
        if layer is cache.layers[0]:  # which knows tokens and positions only
            torch.testing.assert_close(keys[:, at + 5 :], all_keys[:, at + number :])
    positions = shorter.positions(shorter.prompt_mask)[:, -1]
    assert positions.tolist() == batch.positions(batch.prompt_mask)[:, -1].tolist()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("head_dim", [6, 5])
def test_numbers_come_back_within_half_a_step(bits, head_dim):
    entries = 3 * torch.randn(2, 3, 11, 2, head_dim, generator=torch.Generator().manual_seed(0)) + 20
    packed = pack(entries, bits)
    back = Handed.of(packed, bits, 11)
    span = torch.stack([(e.amax(d, True) - e.amin(d, True)).expand_as(e) for e, d in zip(entries, (1, 3))])
    step = {32: 0, 16: 2**-10 * 32, 8: span / 255, 4: span / 15}[bits]
    assert ((back.entries.float() - entries).abs() <= step / 2 * 1.01 + (0.02 if bits < 16 else 0)).all()
    assert back.kept.tolist() == list(range(11))
    numbers = packed["keys"].numel() if bits > 4 else 3 * 11 * 2 * ((head_dim + 1) // 2)
    assert packed["keys"].nbytes == numbers * max(bits, 8) // 8
    assert back.num_bytes == sum(tensor.nbytes for tensor in packed.values())


def test_numbers_beyond_fp16_are_kept_in_bf16():
    entries = torch.full((2, 1, 3, 1, 2), 1e6)
    assert torch.isfinite(Handed.of(pack(entries, 16), 16, 3).entries).all()
    assert torch.isfinite(Handed.of(pack(entries, 8), 8, 3).entries).all()


def rewritten(file, change) -> None:
    with safe_open(file, "pt") as opened:
        said = dict(opened.metadata())
    meta, tensors = json.loads(said[KEY]), load_file(file)
    change(meta)
    save_file(tensors, file, {KEY: json.dumps(meta), DIGEST: weights_digest(meta, tensors)})


def flip(file, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: f.unlink(), "no such file. Name one that this makes"),
        (lambda f: f.write_bytes(f.read_bytes()[:-10]), "is damaged, cut off or no cache file"),
        (lambda f: f.write_bytes(b""), "is damaged, cut off or no cache file"),
        (lambda f: f.write_text(TEXT), "is damaged, cut off or no cache file"),
        (lambda f: flip(f, -5), "is damaged: its content does not have the digest"),
        (lambda f: flip(f, f.read_bytes().index(b"num_tokens") + 14), "is damaged"),
        (lambda f: save_file({"keys": torch.zeros(3)}, f), "c2c_lightning read did not write it"),
        (lambda f: rewritten(f, lambda meta: meta.update(format=2)), "has format 2; this version reads format 1"),
        (lambda f: rewritten(f, lambda meta: meta.update(bits=7)), "is damaged: bits"),
        (lambda f: rewritten(f, lambda meta: meta.pop("made_with")), "is damaged: made_with: Field required"),
        *(
            (
                lambda f, part=part: rewritten(f, lambda meta: meta["made_with"][part].update(fingerprint="x" * 64)),
                rf"was made with {part} .* \(xxxxxxxx\), and this {part} is .*: answer with the fuser that read",
            )
            for part in ("receiver", "sharer", "mapper")
        ),
    ],
    ids=[*"missing cut empty text bit header tensors format bits field receiver sharer mapper".split()],  # noqa: SIM905
)
def test_a_file_that_does_not_fit_is_refused_in_one_message(model, folder, tmp_path, harm, said):
    file = tmp_path / "a.cache"
    shutil.copy(folder / "a", file)
    harm(file)
    with pytest.raises(UserError, match=said) as refused:
        model.generate(QUESTIONS[0], context=Cached(file))
    assert f"cache file {file}" in str(refused.value)
    assert "c2c_lightning read" in str(refused.value)


def test_a_mapper_that_was_trained_on_is_another(model, folder, tmp_path):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["mapper.weight"] += 1e-3
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="was made with mapper RidgeMapper"):
        Communicator.from_pretrained(tmp_path).generate(QUESTIONS[0], context=Cached(folder / "a"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--text={}/nowhere.txt"], "--text .*nowhere.txt cannot be read: No such file"),
        (["--text={}/empty.txt"], "empty.txt is empty"),
        (["--text={}/latin.txt"], r"latin.txt is no UTF-8 \(.* at byte 3\)"),
        (["--out={}/nowhere/a"], "there is no such folder"),
        (["--out={}/b/"], "there is no such folder"),
        (["--out={}"], "that is a folder"),
        (["--out={}/./report.txt"], "is the text itself, which would be lost"),
        (["--bits=5"], "bits"),
        (["--keep=0"], "--keep is 0: it must be at least 1"),
        (["--text={}/long.txt"], "the text has .* tokens, and .* reads at most 512"),
        (["--fuser={}/without"], "the fuser has no mapper"),
    ],
)
def test_what_is_wrong_with_a_text_is_told_in_one_message(model, folder, typed, said):
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "long.txt").write_text(TEXT * 60)
    Communicator.fresh(model.models).save_pretrained(folder / "without")
    usual = {"--fuser": "{}/fuser", "--text": "{}/report.txt", "--out": "{}/b"}
    usual |= dict(argument.split("=") for argument in typed)
    with pytest.raises(SystemExit, match=f"error: .*{said}") as refused:
        main(["read", *(f"{name}={value.format(folder)}" for name, value in usual.items())])
    assert "\n" not in refused.value.code.strip()
    assert not (folder / "b").exists()
    assert (folder / "report.txt").read_text() == TEXT


def test_a_file_is_for_whoever_may_read_its_folder_and_a_byte_order_mark_is_no_text(model, folder, tmp_path):
    (tmp_path / "marked.txt").write_text(TEXT, encoding="utf-8-sig")
    paths = [f"--fuser={folder / 'fuser'}", f"--text={tmp_path / 'marked.txt'}", f"--out={tmp_path / 'a'}"]
    main(["read", *paths])
    assert read_cache(tmp_path / "a")[0] == read_cache(folder / "a")[0]
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "marked.txt").stat().st_mode


def test_a_message_keeps_its_own_text_where_no_context_is_given(model):
    told = [{**QUESTIONS[0][0], "private": TEXT}]
    answers = model.generate([told, QUESTIONS[1]], context=[None, OTHER], max_new_tokens=4)
    assert answers == model.generate(QUESTIONS[:2], context=[TEXT, OTHER], max_new_tokens=4)
    with pytest.raises(UserError, match="a context for a message that has a private text: give one of them"):
        model.generate(told, context=OTHER)


@pytest.mark.parametrize(
    ("message", "context", "said"),
    [
        ({}, 3, "contexts that generate was given"),
        ({}, Path("a"), "contexts that generate was given.*Give a text or a Cached one"),
        ({}, {"a": TEXT}, "contexts that generate was given"),
        ({}, "a\ud800", "contexts that generate was given.*surrogates"),
        ({}, TEXT * 60, "the text has .* tokens, and .*sharer reads at most 512"),
        ({}, "x " * 250, "a slot for each token of the text has .* tokens, and .*receiver reads at most 512"),
        ({"private": 3}, None, "what generate was given.*private"),
        ({"private": Cached("a")}, None, "what generate was given.*private"),
        ({"receiver_only": [TEXT]}, None, "what generate was given.*receiver_only"),
        ({"content": "a\ud800"}, None, "what generate was given.*surrogates"),
    ],
)
def test_what_is_no_text_to_answer_about_is_told_in_one_message(model, message, context, said):
    with pytest.raises(UserError, match=said):
        model.generate([{**QUESTIONS[0][0], **message}], context=context)


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        (None, {}, "the text for"),
        ("a\ud800", {}, "surrogates"),
        (TEXT, {"keep": "3"}, "keep is '3': it must be a whole number"),
        (TEXT, {"keep": 1.5}, "keep is 1.5: it must be a whole number"),
        (TEXT, {"bits": 5}, "bits is 5: give one of"),
    ],
)
def test_what_cannot_be_written_of_a_text_is_told_in_one_message(model, tmp_path, text, settings, said):
    with pytest.raises(UserError, match=said):
        model.save_text(text, tmp_path / "a", **settings)
    with pytest.raises(UserError, match="it is a folder"):
        model.save_text(TEXT, tmp_path)
    assert not [*tmp_path.iterdir()]
