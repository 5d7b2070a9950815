"""Ranks of process groups as forked children of one warm process: importing torch takes seconds, a fork does not.

`RankServer` is the client's side; the program, `python -m tests.rank_server`, reads one JSON request a line: fork so
many ranks, each calls a function, and answer how each ended and what it printed.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ended:
    """Exit code of a rank, negative for a signal, and what it wrote to both streams."""

    code: int
    output: str


class RankServer:
    """Starts the warm process; a context manager."""

    def __enter__(self) -> RankServer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rank_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def run(self, world: int, work: Callable[..., int | None], *arguments: Any, seconds: float = 120.0) -> list[Ended]:
        """Call `work(*arguments)` in `world` ranks; what still runs after `seconds` is killed.

        Args:
            work: a function of a module below `tests/`; returns the rank's exit code.
            arguments: what JSON can carry.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # pytest imports test modules under their last name alone.
        module = Path(inspect.getfile(work)).relative_to(ROOT).with_suffix("")
        name = [".".join(module.parts), work.__name__]
        request = {"world": world, "work": name, "arguments": arguments, "seconds": seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the rank server died"
        return [Ended(**rank) for rank in json.loads(answer)]

    def results(self, world: int, work: Callable[..., int | None], *arguments: Any) -> list[Any]:
        """The same for work that ends well: what each rank printed last, as JSON."""
        ranks = self.run(world, work, *arguments)
        assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.output[-3000:] for rank in ranks)
        return [json.loads(rank.output.strip().splitlines()[-1]) for rank in ranks]


def _fork(rank: int, world: int, port: int, request: dict[str, Any], output: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdin.close()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        module, name = request["work"]
        code = getattr(importlib.import_module(module), name)(*request["arguments"]) or 0
    except BaseException:  # noqa: BLE001 - the child must end here, whatever it was
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # gloo's threads can outlive the interpreter's teardown.
    os._exit(code)


def _answer(request: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    world = request["world"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = [folder / f"rank{rank}" for rank in range(world)]
    for output in outputs:
        output.unlink(missing_ok=True)
    left = {_fork(rank, world, port, request, outputs[rank]): rank for rank in range(world)}
    codes: dict[int, int] = {}
    until = time.monotonic() + request["seconds"]
    while left:
        for pid, rank in list(left.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                del left[pid]
        if left and (time.monotonic() > until or (codes and all(_stopped(pid) for pid in left))):
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [{"code": codes[rank], "output": outputs[rank].read_text()} for rank in range(world)]


def _stopped(pid: int) -> bool:
    """Whether a child has been stopped by SIGSTOP: it would never end."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def main() -> None:
    import torch

    torch.set_num_threads(1)
    from tests.training import rank_work

    rank_work.warm_up()
    # What is there now stays: a child that looked through it for garbage would copy every page of it.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line), Path(folder))), flush=True)


if __name__ == "__main__":
    main()
