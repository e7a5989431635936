"""A folder of tensors that is never trusted, never too large, and never in one process's way of another."""

import multiprocessing
import os
import time

import pytest
import torch

from c2c_lightning.models.shards import Shards

BUDGET = 10**9
KEYS = [f"{i:064x}" for i in range(12)]
SHARD_BYTES = 4096


def content(i: int) -> dict[str, torch.Tensor]:
    return {"keys": torch.full((2, 3, 40), float(i), dtype=torch.bfloat16), "values": torch.arange(700) + i}


def block() -> dict[str, torch.Tensor]:
    """What fills a shard of not quite SHARD_BYTES."""
    return {"x": torch.zeros(SHARD_BYTES - 400, dtype=torch.uint8)}


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def age(path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_was_put_is_got_by_any_process_to_the_bit(tmp_path):
    Shards(tmp_path, BUDGET).put(KEYS[1], content(1))
    found = Shards(tmp_path, BUDGET).get(KEYS[1])
    assert same(found, content(1))
    assert Shards(tmp_path, BUDGET).get(KEYS[2]) is None


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"0",
        lambda data: os.urandom(len(data)),
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: bytes(len(data)),
        lambda data: flip(data, len(data) - 1),
        lambda data: flip(data, len(data) // 2),
    ],
)
def test_a_damaged_shard_is_not_there_and_can_be_put_again(tmp_path, damage, caplog):
    shards = Shards(tmp_path, BUDGET)
    for key in KEYS[:3]:
        shards.put(key, content(1))
        shards.path(key).write_bytes(damage(shards.path(key).read_bytes()))
    assert [shards.get(key) for key in KEYS[:3]] == [None] * 3
    assert caplog.text.count("is damaged") == 1
    shards.put(KEYS[0], content(1))
    assert same(shards.get(KEYS[0]), content(1))


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    shards = Shards(tmp_path, BUDGET)
    shards.put(KEYS[1], content(1))
    data = shards.path(KEYS[1]).read_bytes()
    for at in range(len(data)):
        shards.path(KEYS[1]).write_bytes(flip(data, at))
        found = shards.get(KEYS[1])
        assert found is None or same(found, content(1)), f"byte {at}"


def test_another_keys_shard_is_not_there(tmp_path):
    shards = Shards(tmp_path, BUDGET)
    shards.put(KEYS[1], content(1))
    shards.path(KEYS[1]).rename(shards.path(KEYS[2]))
    assert shards.get(KEYS[2]) is None


def test_shards_that_nobody_used_lately_give_way_the_oldest_first(tmp_path):
    before = Shards(tmp_path, 6 * SHARD_BYTES)
    for i in range(8):
        before.put(KEYS[i], block())
    kept = [i for i in range(8) if before.path(KEYS[i]).exists()]
    assert kept == [0, 1, 2, 3, 4, 5]
    for i in kept:
        age(before.path(KEYS[i]), 1000 - i)
    now = Shards(tmp_path, 6 * SHARD_BYTES)
    assert now.get(KEYS[0]) is not None
    now.put(KEYS[8], block())
    assert now.path(KEYS[8]).exists()
    assert now.path(KEYS[0]).exists()
    gone = [i for i in kept if not now.path(KEYS[i]).exists()]
    assert gone
    assert gone == list(range(1, 1 + len(gone)))
    assert size(tmp_path) <= 6 * SHARD_BYTES


def test_where_all_is_in_use_no_more_is_taken_which_is_said_once(tmp_path, caplog):
    shards = Shards(tmp_path, 3 * SHARD_BYTES)
    for i in range(8):
        shards.put(KEYS[i], block())
    assert [shards.get(key) is not None for key in KEYS[:8]] == [True] * 3 + [False] * 5
    assert caplog.text.count("takes no more") == 1
    assert "full" in caplog.text
    assert size(tmp_path) <= 3 * SHARD_BYTES


@pytest.mark.parametrize("note", ["", "garbage", "-5"])
def test_a_damaged_note_of_the_size_does_no_harm(tmp_path, note):
    shards = Shards(tmp_path, BUDGET)
    shards.put(KEYS[1], content(1))
    (tmp_path / "size").write_text(note)
    shards.put(KEYS[2], content(2))
    assert same(shards.get(KEYS[1]), content(1))
    assert same(shards.get(KEYS[2]), content(2))


def test_what_a_killed_process_was_writing_is_removed_when_room_is_made_and_other_files_never(tmp_path):
    shards = Shards(tmp_path, BUDGET)
    shards.put(KEYS[1], content(1))
    left = shards.path(KEYS[1]).with_name(f"{KEYS[3]}.safetensors.{'0' * 32}")
    others = [tmp_path / "00" / "notes.txt", tmp_path / "00" / "model.safetensors", tmp_path / "model.safetensors"]
    for path in (left, *others):
        path.write_bytes(b"half of it")
        age(path, 1000)
    (tmp_path / "size").unlink()
    now = Shards(tmp_path, SHARD_BYTES)
    now.put(KEYS[2], content(2))
    assert not left.exists()
    assert all(path.exists() for path in others)


def test_a_disk_that_takes_no_more_is_done_without(tmp_path, caplog):
    shards = Shards(tmp_path / "store", BUDGET)
    shards.put(KEYS[1], content(1))
    (tmp_path / "store" / KEYS[2][-2:]).mkdir()
    (tmp_path / "store" / "ab").write_text("a file where a folder of shards should be")
    for key in ("ab" + KEYS[2][2:], "ab" + KEYS[3][2:]):
        shards.put(key, content(2))
        assert shards.get(key) is None
    assert caplog.text.count("takes no more") == 1
    assert same(shards.get(KEYS[1]), content(1))


def work(folder, seed: int, rounds: int, failed) -> None:
    order = torch.Generator().manual_seed(seed)
    for turn in range(rounds):
        if turn % 10 == 0:  # as a new process, to which the others' shards are old
            shards = Shards(folder, 8 * SHARD_BYTES)
        i = int(torch.randint(len(KEYS), (), generator=order))
        found = shards.get(KEYS[i])
        if found is None:
            shards.put(KEYS[i], content(i))
        elif not same(found, content(i)):
            failed.set()
        if shards.damaged:  # or seen before it was whole
            failed.set()


def at_once(*calls) -> None:
    """Runs functions, with their arguments, in processes of their own."""
    context = multiprocessing.get_context("fork")
    # Daemons, so that one that hangs fails the test and not the whole session, which would wait for it at its end.
    processes = [context.Process(target=call, args=args, daemon=True) for call, *args in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_processes_that_write_and_read_at_once_see_nothing_but_whole_shards(tmp_path):
    failed = multiprocessing.get_context("fork").Event()
    at_once(*((work, tmp_path, seed, 150, failed) for seed in range(3)))
    assert not failed.is_set()
    shards = Shards(tmp_path, BUDGET)
    found = [(i, shards.get(key)) for i, key in enumerate(KEYS)]
    assert any(tensors for _, tensors in found)
    assert all(tensors is None or same(tensors, content(i)) for i, tensors in found)
    assert size(tmp_path) <= 8 * SHARD_BYTES
    assert not list(tmp_path.glob("??/*.safetensors.*"))


def write_again(folder, rounds: int) -> None:
    shards = Shards(folder, BUDGET)
    for _ in range(rounds):
        shards.put(KEYS[1], {"x": torch.ones(1_000_000)})


def read_again(folder, rounds: int) -> None:
    shards = Shards(folder, BUDGET)
    for _ in range(rounds):
        assert shards.get(KEYS[1]) is not None


def test_a_shard_that_is_written_again_is_whole_all_the_time(tmp_path):
    write_again(tmp_path, 1)
    at_once((write_again, tmp_path, 80), (read_again, tmp_path, 400))


def fill(folder, first: int, number: int) -> None:
    shards = Shards(folder, 200 * SHARD_BYTES)
    for i in range(first, first + number):
        shards.put(f"{i:064x}", block())


def test_the_budget_is_that_of_all_processes_together(tmp_path):
    at_once(*((fill, tmp_path, 1000 * i, 150) for i in range(3)))
    assert 0.9 * 200 * SHARD_BYTES < size(tmp_path) <= 200 * SHARD_BYTES
