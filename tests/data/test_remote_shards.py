"""Shard sets and training over URLs: the same samples as from disk, and a network that fails is no bad sample."""

from __future__ import annotations

import functools
import http.server
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_med.cli import main
from clip_med.data.images import Preprocess
from clip_med.data.indexing import index_into
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.remote import RemoteConfig, RemoteError
from clip_med.data.shards import ShardError, ShardSet, open_shards
from tests.data.test_loader import sample, write

pytest.importorskip("fsspec", reason="fsspec is not installed (pip install 'clip-med[remote]')")
pytest.importorskip("aiohttp", reason="aiohttp is not installed (pip install 'clip-med[remote]')")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder of shards and the URL under which it is served."""
    write(tmp_path / "www/train", [sample(i) for i in range(23)])
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield tmp_path / "www/train", f"http://127.0.0.1:{server.server_port}/train"
    server.shutdown()
    thread.join()
    server.server_close()


def settings(tmp_path: Path, **changes: Any) -> RemoteConfig:
    return RemoteConfig(cache=tmp_path / "cache", attempts=2, backoff_s=0.01, **changes)


def batches(shards: ShardSet, workers: int = 0, count: int = 4, **config: Any) -> list[tuple[Any, ...]]:
    order = SampleOrder(shards.sizes, seed=3, window_shards=2)
    loader = TrainLoader(shards, order, Preprocess(size=8), LoaderConfig(workers=workers, **config), global_batch=8)
    found = [next(loader) for _ in range(count)]
    loader.close()
    return [(batch.keys, batch.captions, batch.images.numpy().tobytes()) for batch in found]


def test_a_set_at_a_url_is_the_set_on_disk(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    here, there = ShardSet.open(folder), ShardSet.open(url, settings(tmp_path))
    assert there.digest == here.digest
    assert [there.read(i) for i in range(23)] == [here.read(i) for i in range(23)]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 5
    assert there.verify() == ()
    assert there.columns().modalities == here.columns().modalities
    assert ShardSet.open(f"file://{folder}").digest == here.digest
    some = ShardSet.open(url + "/00000{1..2}.tar", settings(tmp_path))
    assert [some.key(i) for i in range(len(some))] == [here.key(i) for i in range(5, 15)]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_url_gives_the_same_batches(served: tuple[Path, str], tmp_path: Path, workers: int) -> None:
    folder, url = served
    remote = open_shards([url], settings(tmp_path, prefetch=2))
    assert remote.prefetched == 9
    assert batches(remote, workers) == batches(open_shards([folder]))


def test_ranges_leave_no_cache(served: tuple[Path, str], tmp_path: Path) -> None:
    url = served[1]
    # The standard library's server knows no ranges: that is said, not worked around.
    with pytest.raises(RemoteError, match="knows no ranges"):
        ShardSet.open(url, settings(tmp_path, mode="range")).read(3)
    assert not (tmp_path / "cache").exists()


def test_damage_in_the_cache_is_mended_and_damage_at_the_source_named(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    remote = ShardSet.open(url, settings(tmp_path))
    expected = remote.read(7)
    entry = tmp_path / "cache" / f"{remote.shards[1].sha256}.tar"
    data = entry.read_bytes()
    with entry.open("r+b") as file:  # the descriptor that the set has open sees it too
        file.write(bytes(byte ^ 1 for byte in data))
    assert remote.read(7) == expected
    tar = folder / "000003.tar"
    tar.write_bytes(tar.read_bytes()[:-512] + b"x" * 512)
    with pytest.raises(RemoteError, match=r"000003\.tar: has changed since it was indexed"):
        remote.read(17)


def test_a_network_that_fails_is_no_bad_sample(
    served: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, url = served
    remote = open_shards([url], settings(tmp_path, prefetch=0))
    (folder / "000000.tar").write_bytes(b"gone")
    with caplog.at_level(logging.WARNING), pytest.raises(RemoteError, match=r"000000\.tar"):
        batches(remote, on_bad_sample="replace", max_bad_fraction=1.0)
    assert "replaced a damaged sample" not in caplog.text
    with pytest.raises(ShardError, match=r"no dataset\.json.*--out DIR"):
        ShardSet.open(url.replace("/train", "/nothing"), settings(tmp_path))


def test_tars_at_urls_are_indexed_into_a_folder(
    served: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = served
    here = ShardSet.open(folder)
    pattern = url + "/{000000..000004}.tar"
    found = index_into(pattern, tmp_path / "index", remote=settings(tmp_path))
    assert found.digest == here.digest
    opened = ShardSet.open(tmp_path / "index", settings(tmp_path))
    assert [opened.read(i) for i in range(23)] == [here.read(i) for i in range(23)]
    # The same for tars on a disk that cannot be written.
    assert main(["data", "index", str(folder), "--out", str(tmp_path / "local"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == here.digest
    assert ShardSet.open(tmp_path / "local").read(22) == here.read(22)
    shutil.move(folder / "000004.tar", tmp_path / "elsewhere.tar")
    with pytest.raises(ShardError, match=r"000004\.tar: no such shard"):
        ShardSet.open(tmp_path / "local")
    assert main(["data", "index", pattern]) == 2
    assert "--out DIR" in capsys.readouterr().err
    with pytest.raises(RemoteError, match="cannot be listed over http"):
        index_into(url, tmp_path / "other", remote=settings(tmp_path))
    with pytest.raises(ShardError, match="holds tars"):
        index_into(pattern, folder, remote=settings(tmp_path))
    twice = str(tmp_path) + "/{a,b}/1.tar"
    with pytest.raises(ShardError, match=r"2 tars are named 1\.tar"):
        index_into(twice, tmp_path / "other")


def test_sets_at_urls_pickle(served: tuple[Path, str], tmp_path: Path) -> None:
    import pickle

    remote = ShardSet.open(served[1], settings(tmp_path))
    expected = remote.read(0)
    assert pickle.loads(pickle.dumps(remote)).read(0) == expected
