"""What looks at a checkpoint of torch before torch does.

It is a ZIP archive with a pickle in it. What the pickle may do is torch's to limit; that the archive is what
torch writes, and does not unfold to more than it is, is looked at here.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from resedge.errors import InputRefused

MAX_CHECKPOINT_BYTES = 8 << 30  # weights, their averages and an optimiser's state of 600 million parameters
MAX_CHECKPOINT_ENTRIES = 20_000
MAX_PICKLE_BYTES = 16 << 20


def check_checkpoint(path: Path) -> None:
    """Check that a file is an archive as torch.save writes it, within the limits; nothing is unpacked.

    Raises:
        InputRefused: A folder, missing, unreadable, of torch's old format, compressed, or beyond the limits.
    """
    where = str(path)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be searched
        raise InputRefused("is a folder, not a checkpoint.", where=where)
    try:
        with path.open("rb") as stream:
            size, head = os.fstat(stream.fileno()).st_size, stream.read(4)
            if head != b"PK\x03\x04":
                raise InputRefused(
                    "is no checkpoint as torch writes it since version 1.6, or is damaged.",
                    where=where,
                    cure="Load it where it was made, and save its state_dict: safetensors.torch.save_file.",
                )
            if size > MAX_CHECKPOINT_BYTES:
                raise InputRefused(f"has {size:,} bytes, more than {MAX_CHECKPOINT_BYTES:,}.", where=where)
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=where) from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputRefused(f"is a damaged archive ({error}).", where=where) from error
    _check_entries(entries, where)


def _check_entries(entries: list[zipfile.ZipInfo], where: str) -> None:
    """Check what an archive's directory says of its entries."""
    if len(entries) > MAX_CHECKPOINT_ENTRIES:
        raise InputRefused(
            f"has {len(entries):,} entries, more than {MAX_CHECKPOINT_ENTRIES:,}.", where=where
        )
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise InputRefused("is compressed or encrypted, which torch.save never does.", where=where)
    inside = {entry.filename.split("/", 1)[-1]: entry.file_size for entry in entries}
    if any(name.startswith("code/") for name in inside):
        raise InputRefused(
            "is a TorchScript program, which is code.",
            where=where,
            cure="Save the state_dict of the model that it was made from.",
        )
    if "data.pkl" not in inside:
        raise InputRefused("is an archive, and no checkpoint of torch.", where=where)
    if inside["data.pkl"] > MAX_PICKLE_BYTES:
        raise InputRefused(
            f"has a pickle of {inside['data.pkl']:,} bytes, more than {MAX_PICKLE_BYTES:,}.", where=where
        )
