"""Tensors on disk under keys, within a budget, for any number of processes at once.

<folder>/
  ab/ab12...safetensors   a shard: what one key stands for, with a checksum
  size                    bytes of all shards
  lock                    held while `size` is read and written

A shard is written under another name and then renamed, so nobody sees half of one, and of two processes that write
the same shard one is the last. Whatever is missing, damaged or another key's is not there, and what cannot be written
is left out: a user of the folder has to be able to do without any shard.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from xxhash import xxh3_128

from c2c_lightning.models.identity import add_tensor

log = logging.getLogger(__name__)

NAME = re.compile(r"([0-9a-f]{64})\.safetensors(\.[0-9a-f]{32})?")
"""A shard, or one that is being written. Nothing else is ever removed."""
CHECKSUM = "checksum"
LOCK_SECONDS = 60.0
# Room is made for some shards at a time, as looking for the oldest means looking at all.
FILLED_AGAIN = 0.9


class Shards:
    """A folder of shards.

    When there is no more room, shards that nobody has used since this object was made give way, those that were
    used longest ago first. If there are none, no more are written: where all shards are needed again and again, to
    replace one by another gains nothing.

    Args:
        folder: it is made.
        budget: bytes that all shards together may have.

    Attributes:
        writes: whether more are written.
        damaged: how many were found damaged.

    Raises:
        OSError: the folder cannot be made, or cannot be written to.
    """

    def __init__(self, folder: Path, budget: int):
        self.folder, self.budget = folder, budget
        self.writes, self.damaged = True, 0
        folder.mkdir(parents=True, exist_ok=True)
        # The time of the disk that the shards are on, which may be another machine's.
        probe = folder / uuid.uuid4().hex
        probe.touch()
        self.opened = probe.stat().st_mtime_ns
        probe.unlink()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What stands under a key, memory-mapped; None if it is missing or damaged."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
                intact = (file.metadata() or {}).get(CHECKSUM) == checksum(key, tensors)
        except FileNotFoundError:
            return None
        except Exception:  # what a header of garbage leads to is anybody's guess
            intact = False
        if not intact:
            if not self.damaged:
                log.warning("%s is damaged: what it held is computed anew, as with all others that are.", path)
            self.damaged += 1
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps CPU tensors under a key, of 64 hexadecimal digits, if there is room."""
        if not self.writes:
            return
        path = self.path(key)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        data = save(dict(tensors), metadata={CHECKSUM: checksum(key, tensors)})
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            with FileLock(self.folder / "lock", timeout=LOCK_SECONDS):
                if self._make_room(len(data)):
                    temporary.replace(path)
                else:
                    self._stop_writing(f"its {self.budget / 1e9:g} GB are full")
        except OSError as error:  # of which filelock's Timeout is one
            self._stop_writing(str(error))
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _stop_writing(self, reason: str) -> None:
        self.writes = False
        log.warning("%s takes no more of this process: %s. What is not there is computed anew.", self.folder, reason)

    def _make_room(self, size: int) -> bool:
        """Whether a shard of so many bytes may be added; if so, it counts from now on."""
        note = self.folder / "size"
        try:
            used = int(note.read_text())
        except (OSError, ValueError):  # it was never written, or not to its end
            used = self._clear(self.budget)
        if used + size > self.budget:
            used = self._clear(min(int(FILLED_AGAIN * self.budget), self.budget - size))
        fits = used + size <= self.budget
        note.write_text(str(used + size if fits else used))
        return fits

    def _clear(self, limit: int) -> int:
        """Removes what was used longest ago until the rest has no more than so many bytes, if it can; what it has."""
        files = []
        for path in self.folder.glob("??/*"):
            if found := NAME.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((status.st_mtime_ns, 0 if found[2] else status.st_size, path))
        used = sum(size for _, size, _ in files)
        for changed, size, path in sorted(files):
            if changed >= self.opened:
                break
            if used > limit or size == 0:  # what a process that died was writing goes in any case
                path.unlink(missing_ok=True)
                used -= size
        return used


def checksum(key: str, tensors: Mapping[str, Tensor]) -> str:
    """Of a key and all that stands under it: a shard that was renamed is not another key's."""
    digest = xxh3_128(key.encode())
    for name in sorted(tensors):
        add_tensor(digest, name, tensors[name])
    return digest.hexdigest()
