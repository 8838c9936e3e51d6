"""The folders of a store on disk: made, checked, opened, and cleaned of what dead processes left. Blocking; no trio.

    {content_path}/d    blobs                      {content_path}/.lock     the lock of all who write (lock.py)
    {content_path}/a    action results             {temp_path}/d            files being written
    {content_path}/s    values with string keys    {temp_path}/*.session    one locked file for each living process
                                                   {temp_path}/d/00 to 3f   (see SPREAD)
    {content_path}.exec/d     executable variants of blobs (executables.py)
    {content_path}.corrupt    blobs found wrong (quarantine.py)

Where `content_path` is a mount point, the last two are `.exec` and `.corrupt` inside of it: files can only be renamed
within a file system.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from nl.plugin import ActionKey, ConfigError, Digest, ForeignKey, InternalError, Key
from nl.stores.filesystem import names
from nl.stores.filesystem.oserrors import translate

_log = logging.getLogger(__name__)

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SESSION = ".session"
SPREAD = 64
"""Folders for files being written. ext4 gives no inode away anew within minutes of its deletion, but looks at all of
them each time it makes a file: in a store that evicts, a create took 520 us in one folder, and 10 us in folders that
lie in different block groups (which the flag TOPDIR, as of `chattr +T`, on their parent asks for)."""
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000
_FOREIGN_TEMP_AGE_S = 24 * 3600
"""Temporary files that no session of ours names are left alone for so long: somebody else may be writing them."""


class Folder:
    """A folder of files that are named after keys. `fd` is open while the layout is."""

    __slots__ = ("asked_as", "fd", "key_of", "path", "watch")

    def __init__(
        self,
        path: str,
        key_of: Callable[[str, int], names.IndexKey | None],
        asked_as: Callable[[str], Sequence[Key] | None] = lambda name: (),
    ) -> None:
        self.path = path
        self.key_of = key_of
        self.asked_as = asked_as
        self.fd = -1
        self.watch = -1

    def __repr__(self) -> str:
        return f"<Folder {self.path}>"


class Layout:
    """Where everything is. `open` before use, `close` after; both block (run them in a thread)."""

    def __init__(self, *, content_path: str, temp_path: str, name: str) -> None:
        # The true path: what lies beside it must be the same for all processes, whatever links they come by.
        content = os.path.realpath(content_path)
        self.name = name
        self.content_path = content
        self.temp_path = os.path.realpath(temp_path)
        self.blobs = Folder(f"{content}/d", names.key_in_blobs, names.asked_in_blobs)
        self.actions = Folder(f"{content}/a", names.key_in_actions, names.asked_in_actions)
        self.texts = Folder(f"{content}/s", names.key_in_texts, names.asked_in_texts)
        self.executables = Folder(f"{content}.exec/d", names.key_in_executables)
        self.temp = Folder(f"{self.temp_path}/d", lambda name, size: None)
        self.corrupt = Folder(f"{content}.corrupt", lambda name, size: None)
        self.lock_path = f"{content}/.lock"
        self.lock_fd = -1
        self._lock_file = (0, 0)
        """Which file that is: nobody else's gets this inode while it is open."""
        self.is_open = False
        self._session = ""
        self._session_fd = -1
        self._numbers = itertools.count()
        self._made: set[str] = set()

    @property
    def where(self) -> str:
        """For messages: which store this is."""
        return f"the filesystem store {self.name!r}"

    @property
    def indexed_folders(self) -> tuple[Folder, Folder, Folder, Folder]:
        """The folders whose files are in the index."""
        return (self.blobs, self.actions, self.texts, self.executables)

    def open(self) -> None:
        """Makes what is missing, checks that it can work, opens it. Raises ConfigError."""
        try:
            for path in (self.content_path, self.temp_path):
                os.makedirs(path, exist_ok=True)
            self._choose_temp()
            self._place_siblings()
            for folder in (*self.indexed_folders, self.temp, self.corrupt):
                os.makedirs(folder.path, exist_ok=True)
                folder.fd = os.open(folder.path, _FOLDER_FLAGS)
            self._spread()
            self.open_lock_file()
            self._start_session()
            self._adopt_old_layout()
            self._clean_temp()
            self.is_open = True
        except OSError as error:
            self.close()
            path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else self.content_path
            problem = translate(error, store=self.name, path=path, doing="use")
            raise ConfigError("", problem.message) from error

    def close(self) -> None:
        """Closes all descriptors. Files under way have been removed by those who wrote them."""
        self.is_open = False
        for folder in (*self.indexed_folders, self.temp, self.corrupt):
            if folder.fd >= 0:
                os.close(folder.fd)
                folder.fd = -1
        if self._session_fd >= 0:
            with suppress(FileNotFoundError):
                os.unlink(f"{self.temp_path}/{self._session}{_SESSION}")
            os.close(self._session_fd)
            self._session_fd = -1
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def is_in_place(self) -> bool:
        """Whether the open folders of the index are still those at their paths."""
        return all(map(_is_at_its_path, self.indexed_folders))

    def reopen(self) -> None:
        """Makes folders anew that somebody has deleted. Descriptors keep their numbers, so that nobody loses them."""
        for path in (self.content_path, self.temp_path):
            os.makedirs(path, exist_ok=True)
        for folder in (*self.indexed_folders, self.temp, self.corrupt):
            if not _is_at_its_path(folder):
                os.makedirs(folder.path, exist_ok=True)
                _replace(folder.fd, os.open(folder.path, _FOLDER_FLAGS))
        self._spread()
        self.open_lock_file()
        if not os.fstat(self._session_fd).st_nlink:
            os.close(self._session_fd)
            self._start_session()

    def temp_name(self) -> str:
        """A name in `temp`, relative to it, that nobody else uses; its folder is there. Raises OSError."""
        number = next(self._numbers)
        folder = f"{number % SPREAD:02x}"
        if folder not in self._made:
            self.make_temp_folder(folder)
        return f"{folder}/{self._session}-{number:x}"

    def make_temp_folder(self, name: str) -> None:
        """Makes the folder that a name in `temp` begins with. Raises OSError."""
        folder = name.partition("/")[0]
        with suppress(FileExistsError):
            os.mkdir(folder, dir_fd=self.temp.fd)
        self._made.add(folder)

    def locate(self, key: Key) -> tuple[Folder, str, names.IndexKey]:
        """Folder, file name and index key of a key."""
        if type(key) is Digest:
            return self.blobs, names.name_of(key), names.index_key(key)
        if type(key) is ActionKey:
            name = names.name_of(key)
            return self.actions, name, names.key_of_result(name)
        if type(key) is ForeignKey:
            return self.blobs, names.name_of(key), names.index_key(key)
        return self.texts, names.name_of_text(str(key)), names.index_key(key)

    def place_of(self, key: names.IndexKey, size: int) -> tuple[Folder, str]:
        """Where a key of the index has its file, which has `size` bytes."""
        name = names.file_name(key, size)
        if names.is_in_blobs(key):
            return self.blobs, name
        return self.actions if names.is_in_actions(key) else self.texts, name

    def has_lock_file(self, *, is_local: bool) -> bool:
        """Whether the open lock file is still the one at its path. On a local disk its link count tells."""
        if is_local:
            return os.fstat(self.lock_fd).st_nlink > 0
        try:
            there = os.stat(self.lock_path)
        except FileNotFoundError:
            return False
        return (there.st_ino, there.st_dev) == self._lock_file

    def open_lock_file(self) -> None:
        """Opens the lock file, which is made if it is not there. Raises OSError."""
        fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if self.lock_fd < 0:
            self.lock_fd = fd
        else:
            _replace(self.lock_fd, fd)
        facts = os.fstat(self.lock_fd)
        self._lock_file = (facts.st_ino, facts.st_dev)

    def require_open(self) -> None:
        """Raises InternalError while the store does not run."""
        if not self.is_open:
            raise InternalError(f"the filesystem store {self.name!r} is used while it is not running")

    def _place_siblings(self) -> None:
        """Moves `.exec` and `.corrupt` into `content_path` where the folder beside it is another file system."""
        content = self.content_path
        parent = os.path.dirname(content)
        beside = os.stat(parent).st_dev == os.stat(content).st_dev and os.access(parent, os.W_OK | os.X_OK)
        prefix = content if beside else f"{content}/"
        self.executables.path = f"{prefix}.exec/d"
        self.corrupt.path = f"{prefix}.corrupt"

    def _spread(self) -> None:
        """Asks the file system to put the folders in `temp` into different parts of the disk."""
        self._made.clear()
        flags = bytearray(8)
        try:
            fcntl.ioctl(self.temp.fd, _FS_IOC_GETFLAGS, flags)
            wanted = int.from_bytes(flags, sys.byteorder) | _FS_TOPDIR_FL
            fcntl.ioctl(self.temp.fd, _FS_IOC_SETFLAGS, wanted.to_bytes(8, sys.byteorder))
        except OSError:
            pass  # Not ext4, or not our folder: it works all the same.

    def _choose_temp(self) -> None:
        """Takes a folder in `content_path` where files cannot be renamed from `temp_path`, as a volume of its own.

        Only a rename tells: bind mounts of one device refuse it, too.
        """
        name = f".probe-{secrets.token_hex(6)}"
        probe = f"{self.temp_path}/{name}"
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            os.rename(probe, f"{self.content_path}/{name}")
        except OSError as error:
            os.unlink(probe)
            if error.errno != errno.EXDEV:
                raise
            instead = f"{self.content_path}/.temp"
            _log.warning(
                "store %s: temp_path %s is on another file system than content_path %s, so no file could be "
                "renamed into its place: using %s instead. To choose, set temp_path to a folder on that file system",
                self.name, self.temp_path, self.content_path, instead,
            )
            self.temp_path = instead
            self.temp.path = f"{instead}/d"
            os.makedirs(instead, exist_ok=True)
        else:
            os.unlink(f"{self.content_path}/{name}")

    def _adopt_old_layout(self) -> None:
        """Caches of long ago had their blobs in `content_path` itself: they belong into `d`."""
        moved = 0
        with os.scandir(self.content_path) as found:
            for item in found:
                if Digest.parse_name(item.name) is not None and item.is_file(follow_symlinks=False):
                    try:
                        os.rename(item.path, item.name, dst_dir_fd=self.blobs.fd)
                    except FileNotFoundError:
                        continue  # Another process, starting at the same time, was faster.
                    moved += 1
        if moved:
            _log.info("store %s: moved %d blobs of an old layout into %s", self.name, moved, self.blobs.path)

    def _start_session(self) -> None:
        """Takes a name for this process's temporary files and locks it, so that all can see that it lives."""
        while True:
            session = secrets.token_hex(6)
            path = f"{self.temp_path}/{session}{_SESSION}"
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Between the two calls somebody may have locked it, found nobody living in it and deleted it.
            if os.fstat(fd).st_nlink:
                self._session, self._session_fd = session, fd
                return
            os.close(fd)

    def _clean_temp(self) -> None:
        """Deletes the temporary files of sessions that nobody holds any more; others' only when a day old."""
        living, dead = self._sessions()
        removed = 0
        horizon = time.time() - _FOREIGN_TEMP_AGE_S
        for folder, _, files in os.walk(self.temp.path):
            for name in files:
                session = name.partition("-")[0]
                if session in living:
                    continue
                with suppress(FileNotFoundError):
                    facts = os.lstat(f"{folder}/{name}")
                    if session in dead or facts.st_mtime < horizon:
                        os.unlink(f"{folder}/{name}")
                        removed += 1
        for session, fd in dead.items():
            with suppress(FileNotFoundError):
                os.unlink(f"{self.temp_path}/{session}{_SESSION}")
            os.close(fd)
        if removed:
            _log.info("store %s: deleted %d unfinished uploads of dead processes", self.name, removed)

    def _sessions(self) -> tuple[set[str], dict[str, int]]:
        """Living sessions, and dead ones with the descriptor that now locks them."""
        living: set[str] = set()
        dead: dict[str, int] = {}
        for name in os.listdir(self.temp_path):
            session = name.removesuffix(_SESSION)
            if session == name:
                continue
            try:
                fd = os.open(f"{self.temp_path}/{name}", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                living.add(session)
            else:
                dead[session] = fd
        return living, dead


def _is_at_its_path(folder: Folder) -> bool:
    try:
        there, ours = os.stat(folder.path), os.fstat(folder.fd)
    except OSError:
        return False
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)


def _replace(fd: int, by: int) -> None:
    os.dup2(by, fd, inheritable=False)
    os.close(by)
