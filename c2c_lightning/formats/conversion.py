"""`convert`: a published fuser into ours, or one of ours into the published format."""

from __future__ import annotations

from pathlib import Path

from c2c_lightning.errors import UserError
from c2c_lightning.formats.fuser_folder import find_fuser, read_fuser, write_fuser_folder
from c2c_lightning.formats.published import read_published, write_published
from c2c_lightning.formats.published_files import is_published


def convert(source: str, out: str, receiver: str | None = None, sharer: str | None = None) -> None:
    """Converts a fuser, bit for bit, whichever of the two formats it has.

    Args:
        source: the fuser: a folder or a hub id, which may go on with a folder in it.
        out: the folder to write, which must not be there yet.
        receiver: of a published fuser whose recipe does not name it; a folder or hub id.
        sharer: the same.

    Raises:
        UserError: the fuser is damaged or does not fit the models, or the published format has no such fuser.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise UserError(f"--out {out} is there already: name a folder that is not.")
    found = find_fuser(source)
    if is_published(found):
        write_fuser_folder(folder, *read_published(found, receiver, sharer))
        print(f"{folder}: fuser of ours, ready for --fuser {folder}")
        return
    if receiver or sharer:
        raise UserError(f"--receiver and --sharer are for a published fuser, and {source} is one of ours.")
    write_published(folder, *read_fuser(source))
    print(f"{folder}: published format, its projectors in {folder / 'final'}")
