"""Files of a run: there whole or not at all, also after a power cut, and written by one process at a time."""

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from erltool.errors import ErltoolError, InUse
from erltool.text import shown

LOCK = ".lock"  # in a folder that is written to, for as long as it is
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems without them say
_log = logging.getLogger(__name__)


def writing(path: Path):
    """Turns an OSError inside into an ErltoolError that names the path and the remedy."""
    return _using(path, "cannot write", "make room or choose another place, then resume")


def reading(path: Path):
    """Turns an OSError inside into an ErltoolError that names the path and the remedy."""
    return _using(path, "cannot be read", "make it readable")


@contextlib.contextmanager
def _using(path: Path, what: str, remedy: str):
    try:
        yield
    except OSError as e:
        where, why = shown(e.filename or path, 300), e.strerror or shown(e)
        raise ErltoolError(f"{where}: {what} ({why}); {remedy}") from e


def write_whole(file: Path, blob: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut."""
    temporary = new_name(file)
    try:
        with open(temporary, "wb") as f:
            f.write(blob)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, file)
    except OSError:  # where the disk is full, what cannot be finished must not fill it
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(file.parent)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` at the end; on an error nothing changes.

    A kill leaves the old one or the new one under its name; or none, for the moment between two renames, which
    `heal` mends.
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
    """Puts right what a kill inside `replacing` left, and takes its leftovers away."""
    new, old = new_name(folder), old_name(folder)
    if old.exists() and not folder.exists():  # the new one was whole by then
        os.replace(new if new.exists() else old, folder)
    for left_over in (new, old):
        _remove(left_over)


def _remove(folder: Path) -> None:
    """Takes a folder away, or the link that stands for one."""
    with contextlib.suppress(OSError):
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


def new_name(path: Path) -> Path:
    """What a file or folder is called while it is being written."""
    return path.with_name(f".{path.name}.new")


def old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def sync(path: Path) -> None:
    """Has the disk hold what was written to a file, or the names in a folder, before anything that comes later."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    try:
        at = os.open(path, flags)
    except (PermissionError, IsADirectoryError):  # where folders cannot be opened, as on Windows, their names are kept
        return
    try:
        os.fsync(at)
    finally:
        os.close(at)


class Hold:
    """The sole right to write to a folder, from here to `release`, or to the end of the process, however it ends.

    Raises `InUse` where another process or another writer of this one has it, saying which where that is known. Nobody
    is kept from reading. On a file system without locks nobody is kept from writing either, which is warned of.
    """

    def __init__(self, folder: Path, name: str = LOCK):
        self.folder, self.file = folder, folder / name
        # The right is the writer's and not a thread's: a notebook begins a run in one thread and ends it in another.
        self._lock = FileLock(self.file, thread_local=False, fallback_to_soft=False)
        with writing(self.file):
            self._acquire()
            self._inode = _inode(folder)
            self._held = True
        with contextlib.suppress(OSError):  # it only helps whoever is refused
            self.file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def _acquire(self) -> None:
        for attempt in (1, 2):  # the first is lost, too, where the file is taken away between opening and locking it
            try:
                self._lock.acquire(blocking=False)
                return
            except Timeout:
                if attempt == 2:
                    raise InUse(
                        f"{shown(self.folder, 300)}: {_holder(self.file)} is writing there; let it end or stop it, or "
                        "choose another folder"
                    ) from None
            except OSError as e:
                if e.errno not in WITHOUT_LOCKS:
                    raise
                _log.warning("%s: no locks on this file system; let one process write there", shown(self.folder, 300))
                return

    def check(self) -> None:
        """Raises ErltoolError where another folder has the name now: what is written must not go into another run."""
        with writing(self.folder):
            if _inode(self.folder) != self._inode:
                raise ErltoolError(
                    f"{shown(self.folder, 300)}: another folder has this name now; resume where the run was moved to"
                )

    def release(self) -> None:
        """Gives the right back; a second time nothing happens."""
        if not self._held:
            return
        self._held = False
        with contextlib.suppress(OSError):
            if _inode(self.folder) == self._inode:
                self.file.unlink()
        self._lock.release()


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _holder(file: Path) -> str:
    """Who holds a lock, as far as its file says; it is somebody's text."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        mine = said["pid"] == os.getpid() and said["host"] == socket.gethostname()
        return f"process {shown(said['pid'], 20)} on {shown(said['host'])}" + (", this very one," if mine else "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
