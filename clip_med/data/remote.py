"""Shards at URLs: whole tars through a bounded cache on local disk, or ranges of them. Imports no torch.

Several processes share a cache. A shard is downloaded once, under a temporary name, held to its size and SHA-256 and
renamed; entries are named by digest, so no two shards of one file name can meet. The least recently used go first, and
a reader that has one open goes on reading it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from clip_med.config import NonNegativeInt, PositiveFloat, PositiveInt, config

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMES: Final = ("file", "http", "https", "s3", "gs")
# What a shell, a chain of file systems or an environment would be reached through.
_REFUSED: Final = ("::", "${", "\n", "\r", "\0")
# Of a scheme only: a Windows path is none, and a local name may hold a colon.
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):(//)?")


class RemoteError(OSError):
    """A location that could not be read in all attempts, or must not be; as with a failing disk, nothing stands in."""


@config
class RemoteConfig:
    """How shards at URLs are read. Credentials come from the environment of the library that reads them, never here.

    Example:
        >>> RemoteConfig(cache_gib=20.0).mode
        'fetch'
    """

    cache: Path | None = None
    """Folder of the cache; None: clip-med/shards under $XDG_CACHE_HOME or ~/.cache, in a Slurm job under $SLURM_TMPDIR
    or $TMPDIR if set. Processes may share it: the ranks of a node download each shard once."""
    cache_gib: PositiveFloat = 100.0
    """Bound of the cache in GiB (2**30 bytes), besides downloads that are under way."""
    mode: Literal["fetch", "range"] = "fetch"
    """range: read each sample with a ranged request, for a few samples of many shards; nothing is cached."""
    prefetch: NonNegativeInt = 4
    """Shards' worth of samples by which downloads run ahead of use; 0: none."""
    attempts: PositiveInt = 5
    """Tries before a location counts as unreadable; what is missing or forbidden is not tried again."""
    timeout_s: PositiveFloat = 60.0
    """Seconds without a byte after which a connection counts as dead."""
    backoff_s: PositiveFloat = 1.0
    """Seconds before the second try; twice as long before each further one, up to 60, and up to half more by chance."""


def scheme_of(location: str) -> str | None:
    """The scheme of a URL; None for a local path.

    Raises:
        RemoteError: a scheme other than file, http, https, s3 and gs (`pipe:` would start a program), or a character
            that some reader would take for more than a name.

    Example:
        >>> scheme_of("s3://bucket/train"), scheme_of("shards/train")
        ('s3', None)
    """
    for text in _REFUSED:
        if text in location:
            raise RemoteError(f"{redacted(location)!r}: {text!r} may not stand in the location of shards")
    match = _SCHEME.match(location)
    if match is None or (match[2] is None and match[1].lower() not in (*SCHEMES, "pipe")):
        return None
    if match[1] not in SCHEMES or match[2] is None:
        raise RemoteError(
            f"{redacted(location)!r}: shards are read from paths and from {', '.join(s + '://' for s in SCHEMES)}"
        )
    return match[1]


def redacted(location: str) -> str:
    """A location without what may be secret: user, password and query."""
    if "://" not in location:
        return location
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class ShardStore:
    """Reads URLs. May be pickled, and used after a fork, where it begins with connections and threads of its own.

    Args:
        settings: see `RemoteConfig`.
        sleep: waits between attempts.
    """

    def __init__(self, settings: RemoteConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings
        self.cache = settings.cache or _default_cache()
        self._sleep = sleep
        self._begin()

    def read_bytes(self, url: str) -> bytes:
        """A small file, whole.

        Raises:
            FileNotFoundError: there is none.
            RemoteError: it cannot be read.
        """
        return self._retried(url, lambda fs: bytes(fs.cat_file(_path(url))))

    def read_range(self, url: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`.

        Raises:
            FileNotFoundError: there is no such file.
            RemoteError: it cannot be read, is shorter, or its server knows no ranges.
        """

        def ranged(fs: Any) -> bytes:
            data = bytes(fs.cat_file(_path(url), start=offset, end=offset + size))
            if len(data) != size:
                raise RemoteError(
                    f"{len(data)} bytes came for {size} from byte {offset}: the file is short, or its server knows no "
                    f"ranges (remote.mode: fetch does without)"
                )
            return data

        return self._retried(url, ranged)

    def list_names(self, folder: str, suffix: str) -> list[str]:
        """The names of the files in a folder that end in `suffix`, sorted.

        Raises:
            RemoteError: it cannot be listed; over http nothing can.
        """
        if scheme_of(folder) in ("http", "https"):
            raise RemoteError(f"{redacted(folder)}: folders cannot be listed over http; give a pattern of shards")
        found: list[Any] = self._retried(folder, lambda fs: list(fs.ls(_path(folder), detail=False)))
        return sorted(name for path in found if (name := str(path).rpartition("/")[2]).endswith(suffix))

    def open(self, url: str, *, size: int, sha256: str) -> int:
        """A descriptor of the shard in the cache, downloaded first if need be; eviction does not close it.

        Raises:
            FileNotFoundError: there is no such file.
            RemoteError: it cannot be read, is larger than the cache, or is not the file that was indexed.
        """
        entry = self.cache / f"{sha256}.tar"
        descriptor = _opened(entry, size)
        if descriptor is not None:
            return descriptor
        if size > self._bound:
            raise RemoteError(
                f"{redacted(url)}: {size} bytes are more than the whole cache of {self.settings.cache_gib} GiB "
                f"(remote.cache_gib)"
            )
        with self._locked(sha256):
            descriptor = _opened(entry, size)  # another process may have been faster
            if descriptor is not None:
                return descriptor
            for leftover in self.cache.glob(f"{entry.name}.tmp-*"):
                leftover.unlink(missing_ok=True)
            temporary = self.cache / f"{entry.name}.tmp-{os.getpid()}-{threading.get_ident()}"
            try:
                self._retried(url, lambda fs: _download(fs, url, temporary, size, sha256))
                with self._locked("eviction"):
                    self._evict(size)
                    os.replace(temporary, entry)
                    descriptor = os.open(entry, os.O_RDONLY)
            finally:
                temporary.unlink(missing_ok=True)
            return descriptor

    def drop(self, sha256: str) -> None:
        """Remove a shard from the cache, because what was read from it was damaged."""
        with self._locked(sha256):
            (self.cache / f"{sha256}.tar").unlink(missing_ok=True)

    def prefetch(self, shards: Sequence[tuple[str, int, str]]) -> None:
        """Begin to download shards (url, size, sha256) in the background; an error is met again when one is opened."""
        self._check_owner()
        with self._wake:
            self._wanted.extend(shard for shard in shards if shard not in self._asked)
            self._asked.update(shards)
            if self._wanted and self._thread is None:
                # A daemon: a program that ends does not wait for a download.
                self._thread = threading.Thread(target=self._work, name="shard prefetch", daemon=True)
                self._thread.start()

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "cache": self.cache, "_sleep": self._sleep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._systems: dict[str, Any] = {}
        self._wake = threading.Lock()
        self._wanted: deque[tuple[str, int, str]] = deque()
        self._asked: set[tuple[str, int, str]] = set()
        self._thread: threading.Thread | None = None

    def _check_owner(self) -> None:
        if self._owner != os.getpid():
            self._begin()  # threads, locks and connections stay with the parent of a fork

    @property
    def _bound(self) -> int:
        return int(self.settings.cache_gib * 2**30)

    def _work(self) -> None:
        while True:
            with self._wake:
                if not self._wanted:
                    self._thread = None
                    return
                url, size, sha256 = self._wanted.popleft()
            try:
                os.close(self.open(url, size=size, sha256=sha256))
            except OSError as error:
                log.warning("could not fetch ahead: %s", error)
            finally:
                with self._wake:
                    # What is evicted before it is used may be asked for again.
                    self._asked.discard((url, size, sha256))

    @contextmanager
    def _locked(self, name: str) -> Generator[None, None, None]:
        """Alone among all processes and threads that use this cache; ends with the process, however that ends."""
        try:
            (self.cache / "locks").mkdir(parents=True, exist_ok=True)
            with (self.cache / "locks" / name).open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            if isinstance(error, RemoteError | FileNotFoundError):
                raise
            raise RemoteError(f"{self.cache}: the cache of shards cannot be used: {error} (remote.cache)") from error

    def _evict(self, room: int) -> None:
        """Make room for `room` bytes; the caller holds the lock."""
        entries = [(stat.st_mtime_ns, stat.st_size, path) for path, stat in _entries(self.cache)]
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total + room <= self._bound:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _retried(self, url: str, action: Callable[[Any], T]) -> T:
        self._check_owner()
        attempts = self.settings.attempts
        for attempt in range(1, attempts + 1):
            try:
                return action(self._system(url))
            except ImportError as error:
                raise RemoteError(
                    f"{redacted(url)}: needs the extra: pip install 'clip-med[remote]' ({error})"
                ) from error
            except Exception as error:  # every library below has errors of its own; none is swallowed
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(f"{redacted(url)}: there is no such file") from error
                last = attempt == attempts or _permanent(error)
                what = f"{type(error).__name__}: {error}" if not isinstance(error, RemoteError) else str(error)
                text = f"{redacted(url)}: {what.replace(url, redacted(url))}"
                if last:
                    raise RemoteError(f"{text} (attempt {attempt} of {attempts})") from error
                pause = min(60.0, self.settings.backoff_s * 2 ** (attempt - 1)) * random.uniform(1.0, 1.5)
                log.warning("%s; attempt %d of %d follows in %.1f s", text, attempt + 1, attempts, pause)
                self._sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _system(self, url: str) -> Any:
        """The file system of a URL's scheme, made when first needed in this process."""
        scheme = scheme_of(url) or "file"
        if scheme not in self._systems:
            import fsspec  # pyright: ignore[reportMissingTypeStubs]

            seconds = self.settings.timeout_s
            options: dict[str, Any] = {}
            match scheme:
                case "http" | "https":
                    import aiohttp

                    timeout = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
                    # Proxies of the environment are used, as by every other reader of URLs.
                    options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
                case "s3":
                    retries = {"max_attempts": 1}  # ours are enough, and say what happened
                    options = {
                        "config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds, "retries": retries},
                        "anon": os.environ.get("CLIP_MED_S3_ANON") == "1",
                    }
                case "gs":
                    options = {"requests_timeout": seconds}
                case _:
                    pass
            make: Callable[..., Any] = fsspec.filesystem  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            self._systems[scheme] = make(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
        return self._systems[scheme]


def _download(fs: Any, url: str, temporary: Path, size: int, sha256: str) -> None:
    """One attempt: the whole file under a temporary name, flushed, with the size and digest of the index."""
    fs.get_file(_path(url), str(temporary))
    with temporary.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise RemoteError(f"{found} bytes came, the index says {size}")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise RemoteError(
                f"has changed since it was indexed, or was damaged on its way: SHA-256 {digest}, not {sha256}"
            )
        os.fsync(file.fileno())


def _opened(entry: Path, size: int) -> int | None:
    """A descriptor of a cache entry that is there and whole; its time of use is now."""
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        log.warning("%s: is not as it was downloaded; it is fetched again", entry)
        return None
    os.utime(descriptor)
    return descriptor


def _entries(cache: Path) -> list[tuple[Path, os.stat_result]]:
    found: list[tuple[Path, os.stat_result]] = []
    for path in cache.glob("*.tar"):
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:
            continue  # dropped meanwhile
    return found


def _permanent(error: Exception) -> bool:
    """Whether another attempt would end alike: forbidden, no such bucket, bad request, or the disk is full."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in (408, 425, 429)
    return isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _path(url: str) -> str:
    """What fsspec's file systems take: URLs as they are, `file://` as a path."""
    return url.removeprefix("file://")


def _default_cache() -> Path:
    """In a Slurm job on the node's own disk, if it names one: homes are shared by all nodes, and slow."""
    local = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") if "SLURM_JOB_ID" in os.environ else None
    return Path(local or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-med" / "shards"


__all__ = ["SCHEMES", "RemoteConfig", "RemoteError", "ShardStore", "redacted", "scheme_of"]
