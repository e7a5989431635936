"""What is read back from disk is what the models made of the prompts."""

import copy

import pytest
import torch
from torch import Tensor

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.models import PromptStore, exchange_questions
from c2c_lightning.models.cache import prefill
from c2c_lightning.models.identity import fingerprint_in_memory
from tests.models import tiny

NAMES = [["qwen3", "llama", "gemma3"], ["mistral", "qwen2"], ["gpt_neox", "phi"]]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def padded_prompts(model, order=(0, 1, 2)) -> tuple[Tensor, Tensor]:
    """Prompts of 3, 7 and 12 tokens, padded on the left."""
    rows = [torch.arange(1, 1 + n) * 5 % model.config.vocab_size for n in (3, 7, 12)]
    ids, mask = torch.zeros(len(order), 12, dtype=torch.long), torch.zeros(len(order), 12, dtype=torch.long)
    for i, row in enumerate(order):
        ids[i, 12 - len(rows[row]) :], mask[i, 12 - len(rows[row]) :] = rows[row], 1
    return ids, mask


def tensors(cache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def equal(first, second) -> bool:
    pairs = list(zip(tensors(first), tensors(second), strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def shards(folder) -> set:
    return set(folder.glob("??/*.safetensors"))


class Prefills:
    """Counts how often a model is entered while it is one's context."""

    def __init__(self, *models):
        self.models, self.count = models, 0

    def __enter__(self):
        self.handles = [model.register_forward_pre_hook(self._note) for model in self.models]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _note(self, *_):
        self.count += 1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_differs_from_a_plain_prefill_by_rounding_where_tokens_are_and_is_zero_elsewhere(folder, family):
    model = tiny.model(family)
    ids, mask = padded_prompts(model)
    stored, plain = PromptStore(str(folder)).prefill(model, ids, mask), prefill(model, ids, mask)
    assert type(stored) is type(plain)
    assert stored.get_seq_length() == plain.get_seq_length() == 12
    for ours, theirs in zip(tensors(stored), tensors(plain), strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        real = mask.bool()[:, None, :, None].expand_as(ours)
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)
        assert not ours[~real].any()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_read_back_is_to_the_bit_what_was_stored(folder, family):
    model = tiny.model(family)
    ids, mask = padded_prompts(model)
    with Prefills(model) as prefills:
        first = PromptStore(str(folder)).prefill(model, ids, mask)
    assert prefills.count == len(shards(folder)) == 3
    with Prefills(model) as prefills:
        again = PromptStore(str(folder)).prefill(model, ids, mask)
    assert prefills.count == 0
    assert equal(first, again)


def test_prompts_of_the_same_length_are_told_apart(folder):
    model = tiny.model("llama")
    ids, mask = torch.tensor([[5, 6, 7], [5, 6, 8], [7, 6, 5]]), torch.ones(3, 3, dtype=torch.long)
    stored, plain = PromptStore(str(folder)).prefill(model, ids, mask), prefill(model, ids, mask)
    assert len(shards(folder)) == 3
    for ours, theirs in zip(tensors(stored), tensors(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_read_once_whatever_batch_it_comes_in(folder):
    model = tiny.model("qwen3")
    store = PromptStore(str(folder))
    one = store.prefill(model, *padded_prompts(model, [1]))
    with Prefills(model) as prefills:
        three = store.prefill(model, *padded_prompts(model, [2, 1, 1, 0, 2]))
    assert prefills.count == 2
    for alone, batched in zip(tensors(one), tensors(three), strict=True):
        assert torch.equal(batched[1], alone[0])
        assert torch.equal(batched[2], alone[0])


def test_a_shard_is_the_same_to_the_bit_whatever_batch_its_prompt_was_in(tmp_path):
    model = tiny.model("gemma3")
    ids, mask = padded_prompts(model, [1])
    PromptStore(str(tmp_path / "alone")).prefill(model, ids[:, 5:], mask[:, 5:])
    PromptStore(str(tmp_path / "batched")).prefill(model, *padded_prompts(model, [2, 1, 0]))
    (alone,) = shards(tmp_path / "alone")
    assert alone.read_bytes() == (tmp_path / "batched" / alone.parent.name / alone.name).read_bytes()


DAMAGES = {
    "flipped bit": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"no such thing " * 20,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_changes_no_bit_and_is_replaced(folder, damage):
    model = tiny.model("gemma3")
    ids, mask = padded_prompts(model)
    first = PromptStore(str(folder)).prefill(model, ids, mask)
    intact = {path: path.read_bytes() for path in shards(folder)}
    one = sorted(intact)[0]
    for path in (one, *intact):  # one of them, then all
        path.write_bytes(DAMAGES[damage](intact[path]))
        assert equal(PromptStore(str(folder)).prefill(model, *padded_prompts(model, [0, 1, 2])), first)
        assert {path: path.read_bytes() for path in shards(folder)} == intact


def test_shards_that_change_places_change_no_bit(folder):
    model = tiny.model("qwen3")
    ids, mask = padded_prompts(model)
    first = PromptStore(str(folder)).prefill(model, ids, mask)
    names = sorted(shards(folder))
    contents = [path.read_bytes() for path in names]
    for path, content in zip(names, [*contents[1:], contents[0]]):
        path.write_bytes(content)
    assert equal(PromptStore(str(folder)).prefill(model, ids, mask), first)


def test_a_store_that_is_full_changes_no_bit(tmp_path):
    model = tiny.model("qwen3")
    ids, mask = padded_prompts(model)
    large, small = (PromptStore(str(tmp_path / name), gb) for name, gb in (("large", 1), ("small", 6e-6)))
    assert equal(large.prefill(model, ids, mask), small.prefill(model, ids, mask))
    assert 0 < len(shards(tmp_path / "small")) < 3
    assert equal(large.prefill(model, ids, mask), small.prefill(model, ids, mask))


def test_another_models_shards_are_not_read(folder):
    model = tiny.build("llama")
    ids, mask = padded_prompts(model)
    store = PromptStore(str(folder))
    store.prefill(model, ids, mask)
    with torch.no_grad():
        other = copy.deepcopy(model)
        other.model.layers[-1].self_attn.v_proj.weight[3, 5] += 1e-6  # trained on, under the same name
    rounded, rotated = copy.deepcopy(model).bfloat16(), copy.deepcopy(model)
    rotated.model.rotary_emb.inv_freq *= 1.01
    normed = copy.deepcopy(model)
    normed.config.rms_norm_eps *= 2
    for i, changed in enumerate((other, rounded, rotated, normed)):
        with Prefills(changed) as prefills:
            PromptStore(str(folder)).prefill(changed, ids, mask)
        assert prefills.count == 3
        assert len(shards(folder)) == 3 * (i + 2)


def test_the_same_model_is_known_by_any_name(folder):
    model = tiny.build("llama")
    moved = copy.deepcopy(model)
    moved.name_or_path = moved.config.name_or_path = "elsewhere"
    assert fingerprint_in_memory(model) == fingerprint_in_memory(moved) != fingerprint_in_memory(tiny.model("qwen2"))


def test_what_was_computed_in_bf16_is_not_read_in_fp32(folder):
    model = tiny.model("qwen3")
    ids, mask = padded_prompts(model)
    store = PromptStore(str(folder))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, plain = store.prefill(model, ids, mask), prefill(model, ids, mask)
        again = store.prefill(model, ids, mask)
    assert [tensor.dtype for tensor in tensors(mixed)] == [tensor.dtype for tensor in tensors(plain)]
    assert equal(mixed, again)
    whole = store.prefill(model, ids, mask)
    assert not equal(mixed, whole)
    for ours, theirs in zip(tensors(whole), tensors(prefill(model, ids, mask)), strict=True):
        real = mask.bool()[:, None, :, None].expand_as(ours)
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)


def test_what_was_computed_by_compiled_layers_is_not_read_by_others(folder):
    model = tiny.build("qwen3")
    ids, mask = padded_prompts(model)
    PromptStore(str(folder)).prefill(model, ids, mask)
    for layer in model.model.layers:
        layer.compile(backend="eager")
    PromptStore(str(folder)).prefill(model, ids, mask)
    assert len(shards(folder)) == 6


def test_a_prompt_without_tokens_is_padding_and_a_batch_of_them_is_not_stored(folder):
    model = tiny.model("qwen3")
    store = PromptStore(str(folder))
    ids, mask = padded_prompts(model)
    mask[0] = 0
    first = store.prefill(model, ids, mask)
    assert all(not tensor[0].any() and tensor[1].any() for tensor in tensors(first))
    assert len(shards(folder)) == 2
    nothing = store.prefill(model, ids, torch.zeros_like(mask))
    assert nothing.get_seq_length() == 12
    assert len(shards(folder)) == 2


def with_store(names, folder) -> Communicator:
    communicator = tiny.communicator(*names)
    communicator.models.store = PromptStore(str(folder))
    return communicator


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_losses_gradients_and_answers_are_those_without_it(folder, names):
    plain, stored = tiny.communicator(*names), with_store(names, folder)
    batch = plain.collate(tiny.CONVERSATIONS)
    batch.response_ids = torch.arange(15).reshape(3, 5) % 100
    batch.response_mask = torch.ones_like(batch.response_ids)
    for _ in range(2):
        losses, gradients = [], []
        for communicator in (plain, stored):
            communicator.zero_grad()
            loss, supervised = communicator(batch)
            (loss / supervised).backward()
            losses.append(loss / supervised)
            gradients.append([p.grad for p in communicator.fusers.parameters() if p.grad is not None])
        torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
        assert gradients[0]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    with torch.inference_mode():
        for made in (batch, exchange_questions(batch)):
            ids = [c.generate_ids(made, max_new_tokens=6, do_sample=False) for c in (plain, stored)]
            assert torch.equal(*ids)


def test_questions_that_were_exchanged_are_read_back_too(folder):
    communicator = with_store(NAMES[0], folder)
    reading = communicator.read(communicator.collate(tiny.CONVERSATIONS))
    communicator.prefill(reading)
    with Prefills(communicator.receiver, *communicator.sharers) as prefills:
        communicator.prefill(reading.exchanged)
    assert prefills.count == 0


def test_other_alignments_read_the_receivers_shards_and_only_what_else_is_read_otherwise(folder):
    spans = with_store(["qwen3", "llama"], folder)
    spans.prefill(spans.collate(tiny.CONVERSATIONS))
    published = with_store(["qwen3", "llama"], folder)
    published.models.aligner = copy.copy(spans.aligner)
    published.aligner.alignment = "published"
    batch = published.collate(tiny.CONVERSATIONS)
    with Prefills(published.receiver) as of_receiver, Prefills(*published.sharers) as of_sharer:
        published.prefill(batch)
    assert of_receiver.count == 0
    assert of_sharer.count == 3


def test_it_is_no_part_of_what_a_fuser_says_of_itself(folder):
    plain, stored = tiny.communicator("qwen3", "llama"), with_store(["qwen3", "llama"], folder)
    assert plain.config() == stored.config()
    assert plain.state_dict().keys() == stored.state_dict().keys()


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_not_positive_is_refused(budget):
    with pytest.raises(UserError, match=rf"model\.prompt_store\.budget_gb is {budget}: give a positive"):
        PromptStore("store", budget)


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(UserError, match=r"model\.prompt_store\.folder is '.*file.*name a folder"):
            PromptStore(str(place)).check([])


def test_nothing_is_made_before_it_is_used(folder):
    PromptStore(str(folder))
    assert not folder.exists()
