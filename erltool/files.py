"""Files that are written whole or not at all, even at a power cut, in folders with one writer at a time."""

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from erltool.errors import ErltoolError, InUse
from erltool.text import shown

LOCK = ".lock"  # in a folder while a process writes to it
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems without locks
_log = logging.getLogger(__name__)


def writing(path: Path) -> AbstractContextManager[None]:
    """Turns an OSError inside into an ErltoolError that names the path and the remedy."""
    return _using(path, "cannot write", "make room or choose another place, then resume")


def reading(path: Path) -> AbstractContextManager[None]:
    """As `writing`, for reading."""
    return _using(path, "cannot be read", "make it readable")


@contextlib.contextmanager
def _using(path: Path, failure: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        where, why = shown(e.filename or path, 300), e.strerror or shown(e)
        raise ErltoolError(f"{where}: {failure} ({why}); {remedy}") from e


def write_whole(file: Path, blob: bytes) -> None:
    """Writes a file whole or not at all, even at a power cut."""
    temporary = new_name(file)
    try:
        with open(temporary, "wb") as f:
            f.write(blob)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, file)
    except OSError:  # on a full disk the unfinished file must not take up room
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(file.parent)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields a new folder to fill, which replaces `folder` at the end. On an error nothing changes.

    A kill leaves the old or the new folder in place. Between two renames it leaves none, which `heal` mends.
    """
    new, old = new_name(folder), old_name(folder)
    heal(folder)
    new.mkdir(parents=True)
    try:
        yield new
        for inside in (*new.rglob("*"), new):
            sync(inside)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        _remove(new)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    sync(folder.parent)
    _remove(old)


def heal(folder: Path) -> None:
    """Restores a folder after a kill inside `replacing`, and removes the leftovers."""
    new, old = new_name(folder), old_name(folder)
    if old.exists() and not folder.exists():  # the new folder was whole by then
        os.replace(new if new.exists() else old, folder)
    _remove(new)
    _remove(old)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


def new_name(path: Path) -> Path:
    """The name of a file or folder while it is being written."""
    return path.with_name(f".{path.name}.new")


def old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk before anything that comes later."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except (PermissionError, IsADirectoryError):  # Windows cannot open folders, and keeps their names without it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Hold:
    """The sole right to write to a folder, until `release` or the end of the process.

    Raises `InUse`, naming the holder where it is known, if another process or another writer of this one has the right.
    Reading is always free. On a file system without locks a warning says that writing is free, too.
    """

    def __init__(self, folder: Path, name: str = LOCK):
        self.folder, self.file = folder, folder / name
        # Not tied to a thread, because a notebook begins a run in one thread and ends it in another.
        self._lock = FileLock(self.file, thread_local=False, fallback_to_soft=False)
        with writing(self.file):
            self._acquire()
            self._inode = _inode(folder)
            self._held = True
        with contextlib.suppress(OSError):  # for the message to other processes
            self.file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def _acquire(self) -> None:
        for attempt in (1, 2):  # the first also fails where the holder deletes the file meanwhile
            try:
                self._lock.acquire(blocking=False)
                return
            except Timeout:
                if attempt == 2:
                    raise InUse(
                        f"{shown(self.folder, 300)}: {_holder(self.file)} is writing there; stop it or wait for it to "
                        "end, or choose another folder"
                    ) from None
            except OSError as e:
                if e.errno not in WITHOUT_LOCKS:
                    raise
                _log.warning("%s: file system without locks; let one process write there", shown(self.folder, 300))
                return

    def check(self) -> None:
        """Raises ErltoolError where another folder has the name now, so that no line goes into another run."""
        with writing(self.folder):
            if _inode(self.folder) != self._inode:
                where = shown(self.folder, 300)
                raise ErltoolError(f"{where}: another folder has this name now; resume where the run was moved to")

    def release(self) -> None:
        """Gives the right back. A second call does nothing."""
        if not self._held:
            return
        self._held = False
        with contextlib.suppress(OSError):
            if _inode(self.folder) == self._inode:
                self.file.unlink()
        self._lock.release()


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _holder(file: Path) -> str:
    """The holder of a lock, as far as its file says. The file is untrusted text."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        own = holder == {"pid": os.getpid(), "host": socket.gethostname()}
        return f"process {shown(holder['pid'], 20)} on {shown(holder['host'])}" + (", this very one," if own else "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
