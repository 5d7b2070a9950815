"""Shards at URLs: a cache that several processes share, and servers that drop, stall, truncate and lie."""

from __future__ import annotations

import errno
import hashlib
import http.server
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clip_med.data.remote import RemoteConfig, RemoteError, ShardStore, redacted, scheme_of

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (pip install 'clip-med[remote]')")
pytest.importorskip("aiohttp", reason="aiohttp is not installed (pip install 'clip-med[remote]')")

CONTENT = {f"{number:03d}.tar": bytes([number]) * (40_000 + number) for number in range(6)}


@dataclass
class Site:
    """A server of `CONTENT` whose next answers can be spoilt; each fault in the list is used once, per file."""

    url: str = ""
    faults: dict[str, list[str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: bool = True
    release: threading.Event = field(default_factory=threading.Event)


def _handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer(head=False)

        def answer(self, *, head: bool) -> None:
            name = self.path.partition("?")[0].rpartition("/")[2]
            if not head:
                site.requests.append(name)
            fault = site.faults.get(name, [""]).pop(0) if site.faults.get(name) and not head else ""
            if name not in CONTENT or fault.isdigit():
                self.send_response(int(fault) if fault else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = CONTENT[name]
            status = 200
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted and site.ranges:
                data, status = data[int(wanted[1]) : int(wanted[2]) + 1], 206
            if fault == "wrong bytes":
                data = data[:-1] + b"!"
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) // 2 if fault == "short" else len(data)))
            self.end_headers()
            if head:
                return
            if fault in ("drop", "stall"):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                if fault == "stall":
                    site.release.wait(30)
                self.close_connection = True
                return
            self.wfile.write(data[: len(data) // 2] if fault == "short" else data)

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/shards"
    yield found
    found.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def store(tmp_path: Path, **settings: Any) -> ShardStore:
    settings = {"cache": tmp_path / "cache", "timeout_s": 5.0, **settings}
    return ShardStore(RemoteConfig(**settings), sleep=lambda seconds: None)


def described(name: str) -> dict[str, Any]:
    return {"size": len(CONTENT[name]), "sha256": hashlib.sha256(CONTENT[name]).hexdigest()}


def read(opened: ShardStore, site: Site, name: str) -> bytes:
    descriptor = opened.open(f"{site.url}/{name}", **described(name))
    try:
        return os.pread(descriptor, 10**6, 0)
    finally:
        os.close(descriptor)


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").glob("*.tmp-*")]


def test_a_shard_is_downloaded_once_and_stays(site: Site, tmp_path: Path) -> None:
    first = store(tmp_path)
    for _ in range(3):
        assert read(first, site, "001.tar") == CONTENT["001.tar"]
    assert read(store(tmp_path), site, "001.tar") == CONTENT["001.tar"]
    assert site.requests == ["001.tar"]
    assert read(pickle.loads(pickle.dumps(ShardStore(first.settings))), site, "002.tar") == CONTENT["002.tar"]
    assert [path.name for path in (tmp_path / "cache").glob("*.tar")] != ["001.tar"]


@pytest.mark.parametrize("fault", ["drop", "short", "wrong bytes", "500", "503", "429"])
def test_passing_faults_are_outlived(site: Site, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    site.faults["003.tar"] = [fault, fault]
    assert read(store(tmp_path), site, "003.tar") == CONTENT["003.tar"]
    assert site.requests.count("003.tar") == 3
    assert len([r for r in caplog.records if "attempt" in r.getMessage() and "003.tar" in r.getMessage()]) == 2
    assert leftovers(tmp_path) == []


def test_a_stalled_connection_is_given_up(site: Site, tmp_path: Path) -> None:
    site.faults["003.tar"] = ["stall"]
    assert read(store(tmp_path, timeout_s=0.3), site, "003.tar") == CONTENT["003.tar"]
    assert site.requests.count("003.tar") == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("drop", "003.tar: .* \\(attempt 3 of 3\\)"),
        ("wrong bytes", "has changed since it was indexed, or was damaged on its way: SHA-256 [0-9a-f]{64}, not"),
        ("short", "bytes came, the index says 40003"),
        ("503", "503"),
    ],
)
def test_lasting_faults_are_errors_that_leave_nothing(site: Site, tmp_path: Path, fault: str, message: str) -> None:
    site.faults["003.tar"] = [fault] * 9
    with pytest.raises(RemoteError, match=message):
        read(store(tmp_path, attempts=3), site, "003.tar")
    assert site.requests.count("003.tar") == 3
    assert leftovers(tmp_path) == []
    assert not list((tmp_path / "cache").glob("*.tar"))


@pytest.mark.parametrize(("fault", "kind"), [("404", FileNotFoundError), ("403", RemoteError), ("401", RemoteError)])
def test_what_is_missing_or_forbidden_is_not_tried_again(
    site: Site, tmp_path: Path, fault: str, kind: type[OSError]
) -> None:
    site.faults["003.tar"] = [fault] * 9
    with pytest.raises(kind, match=r"003\.tar"):
        read(store(tmp_path), site, "003.tar")
    assert site.requests.count("003.tar") == 1


def test_pauses_grow(site: Site, tmp_path: Path) -> None:
    pauses: list[float] = []
    settings = RemoteConfig(cache=tmp_path / "cache", attempts=5, backoff_s=2.0)
    site.faults["003.tar"] = ["500"] * 4
    read(ShardStore(settings, sleep=pauses.append), site, "003.tar")
    assert len(pauses) == 4
    assert all(2.0 * 2**i <= pause <= 3.0 * 2**i for i, pause in enumerate(pauses))


def test_ranges(site: Site, tmp_path: Path) -> None:
    opened = store(tmp_path)
    url = f"{site.url}/002.tar"
    assert opened.read_range(url, 17, 100) == CONTENT["002.tar"][17:117]
    assert opened.read_bytes(url) == CONTENT["002.tar"]
    with pytest.raises(RemoteError, match="the file is short, or its server knows no ranges"):
        opened.read_range(url, len(CONTENT["002.tar"]) - 5, 10)
    site.ranges = False
    with pytest.raises(RemoteError, match="knows no ranges"):
        store(tmp_path, attempts=1).read_range(url, 17, 100)
    assert not (tmp_path / "cache").exists()


def test_the_cache_keeps_its_bound_and_what_was_used_last(site: Site, tmp_path: Path) -> None:
    opened = store(tmp_path, cache_gib=130_000 / 2**30)
    held = opened.open(f"{site.url}/000.tar", **described("000.tar"))
    os.utime(held, ns=(1, 1))
    for number, name in enumerate(["001.tar", "002.tar", "001.tar", "003.tar"]):
        read(opened, site, name)
        for path in (tmp_path / "cache").glob("*.tar"):
            # Clocks of file systems are coarse: make the order of use visible.
            age = time.time_ns() - (10 - number) * 10**9
            if path.name.startswith(str(described(name)["sha256"])):
                os.utime(path, ns=(age, age))
    kept = {path.name for path in (tmp_path / "cache").glob("*.tar")}
    assert kept == {f"{described(name)['sha256']}.tar" for name in ("001.tar", "002.tar", "003.tar")}
    read(opened, site, "004.tar")
    kept = {path.name for path in (tmp_path / "cache").glob("*.tar")}
    assert f"{described('001.tar')['sha256']}.tar" in kept
    assert f"{described('002.tar')['sha256']}.tar" not in kept
    # Evicted long ago, and still read by who has it open.
    assert os.pread(held, 10**6, 0) == CONTENT["000.tar"]
    os.close(held)
    with pytest.raises(RemoteError, match="more than the whole cache"):
        read(store(tmp_path, cache_gib=1e-6), site, "005.tar")


def test_what_is_damaged_in_the_cache_is_fetched_again(site: Site, tmp_path: Path) -> None:
    opened = store(tmp_path)
    read(opened, site, "001.tar")
    entry = next((tmp_path / "cache").glob("*.tar"))
    entry.write_bytes(b"cut")
    assert read(opened, site, "001.tar") == CONTENT["001.tar"]
    opened.drop(described("001.tar")["sha256"])
    assert not entry.exists()
    assert read(opened, site, "001.tar") == CONTENT["001.tar"]
    assert site.requests.count("001.tar") == 3


def _in_child(work: Callable[[], object]) -> Any:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=work)
    process.start()
    return process


def test_processes_share_one_download_and_a_store_survives_a_fork(site: Site, tmp_path: Path) -> None:
    opened = store(tmp_path)
    read(opened, site, "000.tar")  # connections and threads that a child must not touch
    opened.prefetch([(f"{site.url}/005.tar", *described("005.tar").values())])

    def child() -> None:
        os._exit(0 if read(opened, site, "004.tar") == CONTENT["004.tar"] else 1)

    children = [_in_child(child) for _ in range(4)]
    assert read(opened, site, "004.tar") == CONTENT["004.tar"]
    for process in children:
        process.join(30)
        assert process.exitcode == 0
    assert site.requests.count("004.tar") == 1
    assert leftovers(tmp_path) == [name for name in leftovers(tmp_path) if described("005.tar")["sha256"] in name]


def test_a_killed_download_leaves_a_cache_that_works(site: Site, tmp_path: Path) -> None:
    opened = store(tmp_path, timeout_s=20.0)
    site.faults["002.tar"] = ["stall"]

    process = _in_child(lambda: read(opened, site, "002.tar"))
    deadline = time.monotonic() + 20
    while not leftovers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert leftovers(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert read(opened, site, "002.tar") == CONTENT["002.tar"]
    assert leftovers(tmp_path) == []


def test_prefetching_runs_ahead_and_errors_are_met_again(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = store(tmp_path, attempts=1)
    site.faults["003.tar"] = ["500"]
    wanted = [(f"{site.url}/{name}", *described(name).values()) for name in ("001.tar", "003.tar", "002.tar")]
    opened.prefetch(wanted)
    opened.prefetch(wanted[:1])
    while opened._thread is not None:
        time.sleep(0.005)
    assert site.requests == ["001.tar", "003.tar", "002.tar"]
    assert "could not fetch ahead" in caplog.text
    assert read(opened, site, "002.tar") == CONTENT["002.tar"]
    assert read(opened, site, "003.tar") == CONTENT["003.tar"]
    assert len(site.requests) == 4


def test_a_cache_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RemoteError, match=r"cache: the cache of shards cannot be used.*remote\.cache"):
        read(store(tmp_path), site, "001.tar")


def test_a_full_disk_is_not_tried_again(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = store(tmp_path)

    def full(url: str, path: str) -> None:
        Path(path).write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(opened._system(site.url), "get_file", full)
    with pytest.raises(RemoteError, match=r"No space left on device \(attempt 1 of 5\)"):
        read(opened, site, "001.tar")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat /etc/hostname",
        "PIPE:ls",
        "ftp://host/a.tar",
        "hdfs://host/a",
        "s3://bucket/a::http://host/b",
        "filecache::s3://a/b",
        "a\nb",
        "${HOME}/a",
        "s3:bucket/a",
        "S3://bucket",
    ],
)
def test_other_schemes_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteError):
        scheme_of(location)
    with pytest.raises(RemoteError):
        store(tmp_path).read_bytes(location)


def test_plain_paths_and_urls_are_told_apart() -> None:
    found = [scheme_of(text) for text in ("a/b", "/a", "a:b/c", "C:/x", "https://h/a", "gs://b/c", "file:///a")]
    assert found == [None, None, None, None, "https", "gs", "file"]


def test_secrets_of_urls_are_not_shown(site: Site, tmp_path: Path) -> None:
    assert redacted("https://me:pw@host:80/a/b.tar?X-Amz-Signature=abc") == "https://host:80/a/b.tar"
    url = f"{site.url}/nothing.tar?token=abc".replace("//", "//me:pw@")
    with pytest.raises(FileNotFoundError) as caught:
        store(tmp_path).read_bytes(url)
    assert "token" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_gs_and_s3_get_timeouts_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **options: made.append((scheme, options)))
    opened = store(tmp_path)
    for url in ("gs://b/a", "s3://b/a", "s3://b/c"):
        opened._system(url)
    assert [scheme for scheme, _ in made] == ["gs", "s3"]
    assert made[0][1]["requests_timeout"] == 5.0
    assert made[1][1]["config_kwargs"]["read_timeout"] == 5.0
    assert made[1][1]["anon"] is False


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'clip-med[remote]')")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for name, data in CONTENT.items():
        client.put_object(Bucket="data", Key=f"train/{name}", Body=data)
    client.close()
    yield "s3://data/train"
    server.stop()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3(bucket: str, tmp_path: Path) -> None:
    opened = store(tmp_path, attempts=2)
    name = "002.tar"
    descriptor = opened.open(f"{bucket}/{name}", **described(name))
    assert os.pread(descriptor, 10**6, 0) == CONTENT[name]
    os.close(descriptor)
    assert opened.read_range(f"{bucket}/{name}", 5, 50) == CONTENT[name][5:55]
    assert opened.list_names(bucket, ".tar") == sorted(CONTENT)
    with pytest.raises(FileNotFoundError, match="no such file"):
        opened.read_bytes(f"{bucket}/nothing")
    with pytest.raises(RemoteError, match="has changed since it was indexed"):
        opened.open(f"{bucket}/{name}", size=len(CONTENT[name]), sha256="0" * 64)
