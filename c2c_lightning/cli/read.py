"""`read`: a text that the sharer reads once, as a file that the receiver answers from any number of times."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from c2c_lightning.errors import UserError, check_at_least
from c2c_lightning.files import read_bytes


def read(
    fuser: str,
    text: str,
    out: str,
    bits: Literal[32, 16, 8, 4] | None = None,
    keep: int | None = None,
    dtype: str = "auto",
    receiver: str | None = None,
    sharers: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Writes what the receiver is handed of a text: `generate(messages, context=Cached(out))` then answers about it.

    Args:
        fuser: with a mapper: a folder, a run's folder or checkpoint, a hub id, or `last` for the newest run.
        text: a file with the text, in UTF-8.
        out: the file to write.
        bits: of a number; by default those that the receiver works with, which changes no answer.
        keep: how many of the text's tokens to keep, those that matter most; by default all.
        dtype: of the frozen models; `auto` for the one they were saved in.
        receiver: folder or hub id of the receiver, where it is no longer where the fuser says.
        sharers: the same of all sharers.
        trust_remote_code: import a mapper class that is not one of this package, and so run its file.
    """
    # All that needs no model first: torch takes seconds to import.
    check_at_least(1, "--{}", keep=keep)
    try:
        content = read_bytes(Path(text).expanduser(), "--text").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--text {text} is no UTF-8 ({error.reason} at byte {error.start}): convert it.") from error
    if not content.strip():
        raise UserError(f"--text {text} is empty: name a file that has something to hand over.")
    file = Path(out).expanduser()
    if file.is_dir() or out.endswith("/") or not file.parent.is_dir():
        there = "that is a folder. Name a file in it." if file.is_dir() else "there is no such folder. Make it."
        raise UserError(f"--out {out}: {there}")
    if file.exists() and file.samefile(Path(text).expanduser()):
        raise UserError(f"--out {out} is the text itself, which would be lost: name another file.")

    from c2c_lightning.communicator import Communicator

    Communicator.from_pretrained(fuser, dtype, receiver, sharers, trust_remote_code).save_text(content, out, bits, keep)
    print(f"{out}: {file.stat().st_size:,} bytes. Answer from it by context=Cached({out!r}).")
