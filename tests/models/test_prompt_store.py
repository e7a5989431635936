"""What is read back from disk is what the models made of the prompts."""

import copy
import multiprocessing
import shutil

import pytest
import torch
from diskcache import Cache, Disk
from torch import Tensor

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.models import PromptStore
from c2c_lightning.models.cache import prefill
from c2c_lightning.models.identity import fingerprint_in_memory
from c2c_lightning.models.prompt_store import ENTRIES
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


def entries(folder) -> set:
    """The files of all entries; one that is written again has another name."""
    return set(folder.glob(f"{ENTRIES}/??/??/*.val"))


def contents(folder) -> list[bytes]:
    return sorted(path.read_bytes() for path in entries(folder))


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
    assert prefills.count == len(entries(folder)) == 3
    with Prefills(model) as prefills:
        again = PromptStore(str(folder)).prefill(model, ids, mask)
    assert prefills.count == 0
    assert equal(first, again)


def test_prompts_of_the_same_length_are_told_apart(folder):
    model = tiny.model("llama")
    ids, mask = torch.tensor([[5, 6, 7], [5, 6, 8], [7, 6, 5]]), torch.ones(3, 3, dtype=torch.long)
    stored, plain = PromptStore(str(folder)).prefill(model, ids, mask), prefill(model, ids, mask)
    assert len(entries(folder)) == 3
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


def test_an_entry_is_the_same_to_the_bit_whatever_batch_its_prompt_was_in(tmp_path):
    model = tiny.model("gemma3")
    ids, mask = padded_prompts(model, [1])
    PromptStore(str(tmp_path / "alone")).prefill(model, ids[:, 5:], mask[:, 5:])
    PromptStore(str(tmp_path / "batched")).prefill(model, *padded_prompts(model, [2, 1, 0]))
    (alone,) = contents(tmp_path / "alone")
    assert alone in contents(tmp_path / "batched")


DAMAGES = {
    "flipped bit": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"no such thing " * 20,
    "longer": lambda data: data + b"0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_changes_no_bit_and_is_replaced(folder, damage, caplog):
    model = tiny.model("gemma3")
    ids, mask = padded_prompts(model)
    first, intact = PromptStore(str(folder)).prefill(model, ids, mask), contents(folder)
    for some in (1, 3):
        for path in sorted(entries(folder))[:some]:
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
        caplog.clear()
        assert equal(PromptStore(str(folder)).prefill(model, ids, mask), first)
        assert caplog.text.count("is damaged") == 1
        assert contents(folder) == intact
    for path in entries(folder):
        path.unlink()
    assert equal(PromptStore(str(folder)).prefill(model, ids, mask), first)
    assert contents(folder) == intact


def test_entries_that_change_places_change_no_bit(folder):
    model = tiny.model("qwen3")
    ids, mask = padded_prompts(model)
    first = PromptStore(str(folder)).prefill(model, ids, mask)
    names = sorted(entries(folder))
    moved = [path.read_bytes() for path in names]
    for path, content in zip(names, [*moved[1:], moved[0]]):
        path.write_bytes(content)
    assert equal(PromptStore(str(folder)).prefill(model, ids, mask), first)


def test_a_store_that_is_full_changes_no_bit(tmp_path):
    model = tiny.model("qwen3")
    ids, mask = padded_prompts(model)
    large, small = (PromptStore(str(tmp_path / name), gb) for name, gb in (("large", 1), ("small", 5e-5)))
    assert equal(large.prefill(model, ids, mask), small.prefill(model, ids, mask))
    assert 0 < len(entries(tmp_path / "small")) < 3
    assert equal(large.prefill(model, ids, mask), small.prefill(model, ids, mask))


def test_another_models_entries_are_not_read(folder):
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
        assert len(entries(folder)) == 3 * (i + 2)


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
    assert len(entries(folder)) == 6


def test_a_prompt_without_tokens_is_padding_and_a_batch_of_them_is_not_stored(folder):
    model = tiny.model("qwen3")
    store = PromptStore(str(folder))
    ids, mask = padded_prompts(model)
    mask[0] = 0
    first = store.prefill(model, ids, mask)
    assert all(not tensor[0].any() and tensor[1].any() for tensor in tensors(first))
    assert len(entries(folder)) == 2
    nothing = store.prefill(model, ids, torch.zeros_like(mask))
    assert nothing.get_seq_length() == 12
    assert len(entries(folder)) == 2


def with_store(names, folder) -> Communicator:
    communicator = tiny.communicator(*names)
    communicator.models.store = PromptStore(str(folder))
    return communicator


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_losses_gradients_and_answers_are_those_without_it(folder, names):
    plain, stored = tiny.communicator(*names), with_store(names, folder)
    batch = plain.models.collate(tiny.CONVERSATIONS)
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
        for made in (batch, tiny.next_questions(batch)):
            ids = [c.generate_ids(made, max_new_tokens=6, do_sample=False) for c in (plain, stored)]
            assert torch.equal(*ids)


def test_questions_that_were_exchanged_are_read_back_too(folder):
    communicator = with_store(NAMES[0], folder)
    batch = communicator.models.collate(tiny.CONVERSATIONS)
    communicator.prefill(batch)
    with Prefills(communicator.models.receiver, *communicator.models.sharers) as prefills:
        communicator.prefill(tiny.next_questions(batch))
    assert prefills.count == 0


def test_other_alignments_read_the_receivers_entries_and_only_what_else_is_read_otherwise(folder):
    spans = with_store(["qwen3", "llama"], folder)
    spans.prefill(spans.models.collate(tiny.CONVERSATIONS))
    published = with_store(["qwen3", "llama"], folder)
    published.models.aligner = copy.copy(spans.models.aligner)
    published.models.aligner.alignment = "published"
    batch = published.models.collate(tiny.CONVERSATIONS)
    with Prefills(published.models.receiver) as of_receiver, Prefills(*published.models.sharers) as of_sharer:
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


BLOCK = 20_000
KEYS = [f"{i:064x}" for i in range(100)]
INDEX = 60_000  # bytes of an index of few entries


def block(i: int = 0) -> dict[str, Tensor]:
    return {"keys": torch.full((BLOCK // 2,), i, dtype=torch.bfloat16)}


def holding(folder, blocks: int) -> PromptStore:
    """A store with room for so many blocks and no more, used as by a process that begins."""
    return PromptStore(str(folder), (INDEX + blocks * (BLOCK + 400)) / 1e9)


def held(store, keys=KEYS) -> list[int]:
    return [i for i, key in enumerate(keys) if store.entries.get(key) is not None]


def test_what_was_put_is_got_by_another_to_the_bit_and_no_flipped_bit_goes_unnoticed(folder):
    stack = {"keys": torch.full((2, 3, 4), 1.5, dtype=torch.bfloat16), "values": torch.arange(7)}
    PromptStore(str(folder))._put(KEYS[1], stack)
    store = PromptStore(str(folder))
    found = store._get(KEYS[1])
    assert all(torch.equal(found[name], stack[name]) and found[name].dtype == stack[name].dtype for name in stack)
    (path,) = entries(folder)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert store._get(KEYS[1]) is None, f"byte {at}"


def test_entries_that_nobody_used_lately_give_way_the_oldest_first(folder):
    before = holding(folder, 40)
    for i in range(60):
        before._put(KEYS[i], block())
    kept = held(before)
    assert kept == list(range(len(kept)))
    assert 35 <= len(kept) <= 45
    now = holding(folder, 40)
    assert now._get(KEYS[0]) is not None
    now._put(KEYS[70], block())
    left = held(now)
    assert left == [0, *range(left[1], len(kept)), 70]
    assert 5 <= left[1] <= 15


def test_where_all_is_in_use_no_more_is_taken_which_is_said_once(folder, caplog):
    store = holding(folder, 4)
    for i in range(20):
        store._put(KEYS[i], block())
    assert 2 <= len(held(store)) <= 8
    assert caplog.text.count("takes no more") == 1
    assert "full" in caplog.text


def test_what_a_killed_process_was_writing_is_removed_when_there_is_no_room_and_other_files_never(folder):
    holding(folder, 4)._put(KEYS[0], block())
    left, others = folder / ENTRIES / "00" / "11" / "half.val", folder / "notes.txt"
    left.parent.mkdir(parents=True)
    for path in (left, others):
        path.write_bytes(b"half of it")
    store = holding(folder, 4)
    for i in range(20):
        store._put(KEYS[i], block())
    assert not left.exists()
    assert others.exists()


def test_a_disk_that_takes_no_more_is_done_without(folder, caplog):
    store = PromptStore(str(folder))
    store._put(KEYS[1], block())
    shutil.rmtree(folder / ENTRIES)
    (folder / ENTRIES).write_text("a file where the folder was")
    for key in KEYS[1:4]:
        store._put(key, block())
        assert store._get(key) is None
    assert caplog.text.count("takes no more") == 1


def test_a_damaged_index_is_refused_with_the_remedy(folder):
    PromptStore(str(folder))._put(KEYS[1], block())
    (folder / ENTRIES / "cache.db").write_bytes(b"no such thing " * 1000)
    with pytest.raises(UserError, match="empty it if it is damaged"):
        PromptStore(str(folder)).check([])


def test_a_strangers_pickle_is_never_opened(folder):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("it ran",))

    PromptStore(str(folder)).check([])
    with Cache(str(folder / ENTRIES), disk=Disk) as strangers:
        strangers.set(KEYS[1], Evil(), expire=1e9)
    assert PromptStore(str(folder))._get(KEYS[1]) is None


def work(folder, seed: int) -> None:
    order = torch.Generator().manual_seed(seed)
    for turn in range(60):
        if turn % 10 == 0:  # as a new process, to which what others have written is old
            store = holding(folder, 8)
        i = int(torch.randint(20, (), generator=order))
        found = store._get(KEYS[i])
        if found is None:
            store._put(KEYS[i], block(i))
        else:
            assert torch.equal(found["keys"], block(i)["keys"])
        assert not store.damaged


def test_processes_that_write_read_and_make_room_at_once_see_nothing_but_whole_entries_within_the_budget(folder):
    context = multiprocessing.get_context("fork")
    # Daemons, so that one that hangs fails the test and not the whole session, which would wait for it at its end.
    processes = [context.Process(target=work, args=(folder, seed), daemon=True) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = holding(folder, 8)
    found = {i: store._get(KEYS[i]) for i in held(store)}
    assert found
    assert all(torch.equal(stack["keys"], block(i)["keys"]) for i, stack in found.items())
    assert sum(path.stat().st_size for path in entries(folder)) <= store.budget_gb * 1e9
