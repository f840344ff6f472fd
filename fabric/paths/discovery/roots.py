"""Where sysfs is read from: this machine's, a folder with a copy of it, or an archive, which stays in memory.

Nothing of an archive is written to disk, and a symbolic link is followed by name within the root alone: one that
leads out of a copy (``/etc/passwd``, ``../../..``) ends at something that the copy does not have.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import posixpath
import stat
import tarfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path

from fabric import errors, limits

_LINKS_MAX = 40  # followed for one path, as the kernel has it


class Tree(ABC):
    """A tree of folders, files and symbolic links; names are relative to its root, with ``/`` between."""

    @abstractmethod
    def link(self, name: str) -> str | None:
        """Return what the symbolic link of that name points to, or None when it is none."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return a regular file's bytes, at most `limits.SYSFS_FILE_BYTES_MAX`; None when it cannot be read."""

    @abstractmethod
    def names(self, name: str) -> list[str] | None:
        """Return the names in a folder, sorted; None when it is none."""


class FolderTree(Tree):
    """A folder of this machine, ``/`` for instance."""

    def __init__(self, path: str | Path) -> None:
        self._path = os.fspath(path)

    def link(self, name: str) -> str | None:
        try:
            return os.readlink(self._at(name))
        except OSError:
            return None

    def read(self, name: str) -> bytes | None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self._at(name), flags)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return os.read(descriptor, limits.SYSFS_FILE_BYTES_MAX)
        except OSError:  # EINVAL, ENODEV, EIO: sysfs says so where a value makes no sense now
            return None
        finally:
            os.close(descriptor)

    def names(self, name: str) -> list[str] | None:
        try:
            return sorted(os.listdir(self._at(name)))
        except OSError:
            return None

    def _at(self, name: str) -> str:
        return os.path.join(self._path, name) if name else self._path


class ArchiveTree(Tree):
    """A tar archive, held in memory: regular files up to a size, folders, symbolic links; all else is left out."""

    def __init__(self, files: dict[str, bytes], links: dict[str, str]) -> None:
        self._files = files
        self._links = links
        self._folders: dict[str, set[str]] = {"": set()}
        for name in (*files, *links):
            while name:
                folder, _, last = name.rpartition("/")
                self._folders.setdefault(folder, set()).add(last)
                name = folder

    def link(self, name: str) -> str | None:
        return self._links.get(name)

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def names(self, name: str) -> list[str] | None:
        found = self._folders.get(name)
        return None if found is None else sorted(found)


def open_root(path: str | Path) -> Sysfs:
    """Return the sysfs below a folder or in an archive.

    The root is where ``sys`` lies (``/`` on a machine), that ``sys`` itself, or a folder that holds nothing else.

    Raises
    ------
    ConfigError
        There is no such thing, it holds no sysfs, or an archive is damaged or beyond the limits.
    """
    place = os.fspath(path)
    if os.path.isdir(place):
        tree: Tree = FolderTree(place)
    elif os.path.isfile(place):
        tree = read_archive(place)
    else:
        raise _refused(place, "there is no such folder or archive")
    for prefix in ("", *(tree.names("") or [])[: limits.SYSFS_ROOTS_MAX]):
        for below in ("sys", ""):
            found = Sysfs(tree, posixpath.join(prefix, below))
            if found.names("class") is not None or found.names("devices/system") is not None:
                return found
    raise _refused(place, "neither it nor a folder in it has a sys/ with class/ or devices/system/")


def read_archive(path: str) -> ArchiveTree:
    """Return what a tar archive (also gz, bz2, xz) holds, without writing any of it.

    Raises
    ------
    ConfigError
        It is no tar archive, is damaged, leads out of itself, or is larger than the limits allow.
    """
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    size = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for count, member in enumerate(archive):
                if count >= limits.SYSFS_ARCHIVE_MEMBERS_MAX:
                    raise _refused(path, f"more than {limits.SYSFS_ARCHIVE_MEMBERS_MAX} members")
                name = _inside(path, member.name)
                size += member.size  # what it says: to skip a member is work, too
                if size > limits.SYSFS_ARCHIVE_BYTES_MAX:
                    raise _refused(path, f"more than {limits.SYSFS_ARCHIVE_BYTES_MAX} bytes")
                if member.issym():
                    links[name] = member.linkname
                elif member.isreg() and (stream := archive.extractfile(member)) is not None:
                    # tar fills a file of sysfs up to the size that sysfs had claimed
                    files[name] = stream.read(limits.SYSFS_FILE_BYTES_MAX).rstrip(b"\0")
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        found = str(error).partition("\n")[0].rstrip(":")
        raise _refused(path, f"no readable tar archive ({found})") from error
    return ArchiveTree(files, links)


def _inside(path: str, name: str) -> str:
    """Return a member's name without dots; one that leads out of the archive is an error."""
    if name.startswith("/") or ".." in name.split("/"):
        raise _refused(path, f"the member {name[:80]!r} leads out of the archive")
    return posixpath.normpath(name).removeprefix("./")


def _refused(path: str, reason: str) -> errors.ConfigError:
    return errors.ConfigError(f"{path} cannot be read as sysfs: {reason}", file=path, reason=reason)


class Sysfs:
    """Typed reads of a sysfs; what is absent, refused by the kernel or not of its type is None.

    Paths are relative to ``/sys``; ``/proc`` is read beside it, where it is there.
    """

    def __init__(self, tree: Tree, place: str = "sys") -> None:
        self._tree = tree
        self._place = place
        self._links: dict[str, str | None] = {}

    def text(self, path: str) -> str | None:
        """Return a file's text, stripped."""
        data = self._data(posixpath.join(self._place, path))
        return None if data is None else data.decode(errors="replace").strip()

    def number(self, path: str, base: int = 10) -> int | None:
        """Return a file's whole number."""
        with contextlib.suppress(ValueError):
            return int(self.text(path) or "", base)
        return None

    def names(self, path: str) -> list[str] | None:
        """Return the names in a folder, sorted."""
        place = self._resolve(posixpath.join(self._place, path))
        return None if place is None else self._tree.names(place)

    def real(self, path: str) -> str | None:
        """Return where a path leads, relative to ``/sys``; None when it leads nowhere, or out of it."""
        place = self._resolve(posixpath.join(self._place, path))
        if place is None or not (place + "/").startswith(f"{self._place}/" if self._place else ""):
            return None
        return place[len(self._place) :].lstrip("/")

    def linked(self, path: str) -> str | None:
        """Return the last name of what a symbolic link leads to; None when there is no such link."""
        folder, _, last = path.rpartition("/")
        place = self._resolve(posixpath.join(self._place, folder))
        target = None if place is None else self._link(posixpath.join(place, last))
        return None if target is None else posixpath.basename(target)

    def has(self, path: str) -> bool:
        """Tell whether there is a folder or a readable file of that name."""
        return self.names(path) is not None or self.text(path) is not None

    def proc(self, path: str) -> str | None:
        """Return the text of a file below ``/proc``."""
        beside = posixpath.join(posixpath.dirname(self._place), "proc", path)
        data = self._data(beside)
        return None if data is None else data.decode(errors="replace")

    def _data(self, path: str) -> bytes | None:
        place = self._resolve(path)
        return None if place is None else self._tree.read(place)

    def _resolve(self, path: str) -> str | None:
        """Follow every symbolic link of a path by name, within the root; None after too many."""
        done: list[str] = []
        rest = [part for part in reversed(path.split("/")) if part]
        followed = 0
        while rest:
            part = rest.pop()
            if part == ".":
                continue
            if part == "..":
                if done:
                    done.pop()
                continue
            target = self._link("/".join((*done, part)))
            if target is None:
                done.append(part)
                continue
            followed += 1
            if followed > _LINKS_MAX:
                return None
            if target.startswith("/"):  # the root of the copy, not of this machine
                done.clear()
                done += [p for p in posixpath.dirname(self._place).split("/") if p]
            rest += [p for p in reversed(target.split("/")) if p]
        return "/".join(done)

    def _link(self, name: str) -> str | None:
        if name not in self._links:
            self._links[name] = self._tree.link(name)
        return self._links[name]
