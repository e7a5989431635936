"""`convert`: a published fuser into ours, or one of ours into the published format."""

from __future__ import annotations

from pathlib import Path

from c2c_lightning.errors import UserError
from c2c_lightning.formats.config import located
from c2c_lightning.formats.fuser_folder import CHECKPOINT, find_fuser, named, read_fuser, write_fuser_folder
from c2c_lightning.formats.published import write_published
from c2c_lightning.formats.published_files import WEIGHTS_FOLDER, is_published


def convert(source: str, out: str, receiver: str | None = None, sharer: str | None = None) -> None:
    """Converts a fuser, bit for bit, whichever of the two formats it has.

    Args:
        source: the fuser: a folder or a hub id, which may go on with a folder in it, a checkpoint, or `last`.
        out: the folder to write, which must not be there yet.
        receiver: folder or hub id, where the fuser does not name it, or it is no longer there.
        sharer: the same.

    Raises:
        UserError: the fuser is damaged or does not fit the models, or the published format has no such fuser.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise UserError(f"--out {out} is there already: name a folder that is not.")
    source = named(source)
    config, state = read_fuser(source, receiver, sharer and [sharer])
    if not source.endswith(CHECKPOINT) and is_published(find_fuser(source)):
        write_fuser_folder(folder, config, state)
        print(f"{folder}: fuser of ours, ready for test --model.fuser {folder}")
    else:
        write_published(folder, located(config, source), state)
        print(f"{folder}: published format, its projectors in {folder / WEIGHTS_FOLDER}")
