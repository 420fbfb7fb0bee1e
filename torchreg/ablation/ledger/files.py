"""Files of a ledger, which may come from somebody else: no link is followed, and nothing but a file is waited for.

Everything is opened relative to a descriptor of the directory that holds it, part by part, so that no name within a
ledger leads out of it, not even one that is exchanged while it is looked at. The way to the ledger itself is the
caller's own and may have links.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# what Windows lacks is 0 there
_NO_WAY_OUT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_HOSTILE = {errno.ELOOP, errno.EMLINK, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP}
_UNFINISHED = ".tmp"


class LedgerError(OSError):
    """A row could not be made durable, or a ledger cannot be read."""


def open_file(ledger: Path, name: str, flags: int) -> int:
    """A descriptor of a regular file in a ledger.

    Args:
        ledger: its directory.
        name: the file's within it, parts joined by ``/``.
        flags: of `os.open`; a file that is made has the mode 644.

    Raises:
        LedgerError: if a part of the name is a link, or the file is none; to write, if it has a second name.
        OSError: if it cannot be opened, as `os.open` raises it.
    """
    with _refusing(ledger, name), folder(ledger, *name.split("/")[:-1]) as here:
        file = os.open(name.rpartition("/")[2], flags | _NO_WAY_OUT, 0o644, dir_fd=here)
        found = os.fstat(file)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        if not stat.S_ISREG(found.st_mode) or (writes and found.st_nlink > 1):
            os.close(file)
            raise LedgerError(_refusal(ledger, name))
        return file


@contextmanager
def folder(ledger: Path, *names: str, make: bool = False) -> Iterator[int]:
    """A descriptor of a directory in a ledger, for as long as the block runs."""
    with ExitStack() as opened:
        here = os.open(ledger, _FOLDER)
        opened.callback(os.close, here)
        for name in names:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=here)
            here = os.open(name, _FOLDER | _NO_WAY_OUT, dir_fd=here)
            opened.callback(os.close, here)
        yield here


def make_folder(ledger: Path, name: str = "") -> None:
    """Make a directory, and those above it, unless it is there.

    Raises:
        LedgerError: if a part of the name within the ledger is a link or a file.
    """
    ledger.mkdir(parents=True, exist_ok=True)
    with _refusing(ledger, name), folder(ledger, *filter(None, name.split("/")), make=True):
        pass


def read_bytes(ledger: Path, name: str, start: int = 0) -> bytes:
    """The bytes of a file from ``start`` on."""
    with os.fdopen(open_file(ledger, name, os.O_RDONLY), "rb") as file:
        file.seek(start)
        return file.read()


def exists(ledger: Path, name: str) -> bool:
    """Whether there is anything of that name, be it a link that leads nowhere."""
    with suppress(FileNotFoundError, NotADirectoryError), folder(ledger, *name.split("/")[:-1]) as here:
        os.stat(name.rpartition("/")[2], dir_fd=here, follow_symlinks=False)
        return True
    return False


def names(ledger: Path, name: str = "") -> list[str]:
    """What a directory holds, sorted; nothing if it is not there.

    Raises:
        LedgerError: if it is a link or a file.
    """
    with suppress(FileNotFoundError), _refusing(ledger, name), folder(ledger, *filter(None, name.split("/"))) as here:
        return sorted(os.listdir(here))
    return []


def replace(ledger: Path, name: str, write: Callable[[BinaryIO], object]) -> None:
    """Write a file anew, durably: all of it or nothing, beside the old one first and then in its place.

    Its unfinished forms that dead processes have left are removed: of one file there is one writer.
    """
    last = name.rpartition("/")[2]
    unfinished = f"{last}.{secrets.token_hex(8)}{_UNFINISHED}"
    with _refusing(ledger, name), folder(ledger, *name.split("/")[:-1]) as here:
        for left in os.listdir(here):
            if left.startswith(f"{last}.") and left.endswith(_UNFINISHED):
                with suppress(OSError):
                    os.unlink(left, dir_fd=here)
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_WAY_OUT, 0o644, dir_fd=here)
        try:
            with os.fdopen(file, "wb") as opened:
                write(opened)
                opened.flush()
                os.fsync(file)
            os.replace(unfinished, last, src_dir_fd=here, dst_dir_fd=here)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=here)
            raise
        os.fsync(here)


def is_unfinished(found: str, name: str) -> bool:
    """Whether this is what a writer of ``name`` left that died."""
    return found.startswith(f"{name}.") and found.endswith(_UNFINISHED)


def check_contents(ledger: Path, name: str) -> None:
    """Refuse a directory that leads its user out of the ledger: a program would write through what is in it.

    Raises:
        LedgerError: if it holds, at any depth, a link to outside it, or what is neither file nor directory.
    """
    top = ledger / name
    inside = os.path.realpath(top)
    for found, folders, others in os.walk(top):
        for path in (os.path.join(found, other) for other in (*folders, *others)):
            mode = os.lstat(path).st_mode
            kept = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            if stat.S_ISLNK(mode):
                kept = os.path.commonpath((inside, os.path.realpath(path))) == inside
            if not kept:
                raise LedgerError(_refusal(ledger, os.path.relpath(path, ledger)))


@contextmanager
def _refusing(ledger: Path, name: str) -> Iterator[None]:
    try:
        yield
    except LedgerError:
        raise
    except OSError as error:
        if error.errno in _HOSTILE and os.path.isdir(ledger):
            raise LedgerError(_refusal(ledger, name)) from error
        raise


def _refusal(ledger: Path, name: str) -> str:
    return (
        f"{ledger / name} is a link, leads through one, has two names, or is no regular file; a ledger has none such, "
        "and whoever wrote through it would write elsewhere. Look where it comes from, and remove it."
    )
