"""Text that is slow to make, kept on disk for the next process.

An entry is a folder of text files beside `manifest.json`, which holds the SHA-256 of each: what does not fit its sum is not there. It is
written aside and renamed, so a reader finds all of it or nothing. Folders belong to one user (mode 0700). Where nothing can be written
everything is made anew, and a notice says so once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from nsa_dsl.notices import explained, notice_once
from nsa_dsl.version import VERSION

LOCK_SECONDS = 30.0
"""How long a process waits for another one that makes the same entry, before it makes it as well."""

MOST_ENTRIES = 512
"""Of one kind; the oldest go."""

_MANIFEST = "manifest.json"
_PRIVATE = 0o700
_OTHERS_MAY_WRITE = 0o022


def cache_root() -> Path | None:
    """The user's folder, made if need be: NSA_CACHE_DIR, or where the system keeps caches. None if there is none to be trusted:
    NSA_CACHE_DIR is empty, the disk is read-only, or others may write there."""
    wanted = os.environ.get("NSA_CACHE_DIR")
    if wanted == "":
        return None
    root = Path(wanted) if wanted else Path(user_cache_dir("nsa_dsl"))
    try:
        root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        facts = root.stat()
    except OSError as problem:
        notice_once("no cache on disk (%s): kernels are generated anew in every process", problem)
        return None
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & _OTHERS_MAY_WRITE:
        notice_once("no cache on disk: %s belongs to somebody else, or others may write to it (chmod 700)", root)
        return None
    return root


@cache
def fingerprint() -> str:
    """SHA-256 of this version, its modules, templates and grammar: what a generated text depends on besides its inputs."""
    return _hash_files(".py", ".j2", ".lark", ".nsa")


@cache
def templates_hash() -> str:
    """SHA-256 of the version and its templates: what a measured time depends on besides the card and Triton."""
    return _hash_files(".j2")


def _hash_files(*suffixes: str) -> str:
    whole = hashlib.sha256(VERSION.encode())
    # Links are followed: in a checkout templates and code generation are links to folders beside the package.
    for folder, folders, names in os.walk(Path(__file__).parent, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.endswith(suffixes):
                whole.update(f"{name}\0".encode() + hashlib.sha256(Path(folder, name).read_bytes()).digest())
    return whole.hexdigest()


def key_of(*parts: object) -> str:
    """The key of what is made from these values, which must print all that they are, by this version."""
    return hashlib.sha256("\0".join((fingerprint(), *map(repr, parts))).encode()).hexdigest()


def read_or_make(kind: str, key: str, make: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    """The texts of an entry by their names, from the disk, or made now and kept. Processes that want one entry at the same time let one of
    them make it. Raises what `make` raises."""
    root = cache_root()
    if root is None:
        return make()
    entry = root / kind / key
    found = read_entry(entry)
    if found is not None:
        return found
    with only_one(root, key):
        found = read_entry(entry)
        if found is None:
            found = make()
            write_entry(entry, found)
    return found


def read_entry(entry: Path) -> Mapping[str, str] | None:
    """The texts in a folder; None if there is no such entry, or one that is damaged."""
    try:
        sums = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        contents = {str(name): (entry / Path(name).name).read_bytes() for name in sums}
        if any(hashlib.sha256(each).hexdigest() != sums[name] for name, each in contents.items()):
            return None
        return {name: each.decode("utf-8") for name, each in contents.items()}
    except (OSError, ValueError, TypeError):
        return None


def write_entry(entry: Path, texts: Mapping[str, str]) -> bool:
    """Keep texts under their names (plain file names), in place of what is there. Returns whether that went well; if not, says so once."""
    try:
        entry.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{entry.name[:16]}.", dir=entry.parent))
    except OSError as problem:
        notice_once("nothing can be kept on disk (%s)", problem)
        return False
    try:
        sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        for name, text in {**texts, _MANIFEST: json.dumps(sums)}.items():
            (aside / name).write_bytes(text.encode())
        if entry.exists():
            # Only a damaged entry is written again, or one that another process has finished meanwhile.
            os.replace(entry, aside / "replaced")
        os.rename(aside, entry)
        shutil.rmtree(entry / "replaced", ignore_errors=True)
        _forget_oldest(entry.parent)
    except OSError as problem:
        shutil.rmtree(aside, ignore_errors=True)
        notice_once("nothing can be kept on disk (%s)", problem)
        return False
    return True


def _forget_oldest(folder: Path) -> None:
    """Leave three quarters of MOST_ENTRIES where there are more."""
    entries = [each for each in folder.iterdir() if each.is_dir()]
    if len(entries) > MOST_ENTRIES:
        entries.sort(key=lambda each: each.stat().st_mtime)
        for each in entries[: len(entries) - MOST_ENTRIES * 3 // 4]:
            shutil.rmtree(each, ignore_errors=True)


def only_one(root: Path, key: str) -> AbstractContextManager[object]:
    """The lock of a key; nothing if it cannot be had: then two processes make the same. Some keys share one, so that locks stay few."""
    try:
        folder = root / "locks"
        folder.mkdir(mode=_PRIVATE, exist_ok=True)
        lock = FileLock(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:2]}.lock", mode=0o600)
        with explained(lambda: "waiting for another process that makes the same"):
            return lock.acquire(timeout=LOCK_SECONDS)
    except (OSError, Timeout):
        return nullcontext()
