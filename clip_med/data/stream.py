"""Worker processes that prepare items ahead, in order, and never outlive the one who asked for them."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from clip_med.data.images import ImageError, VolumeError
from clip_med.data.sample import SampleError
from clip_med.data.signals import ignore_signals, signals_held_back
from clip_med.data.tar import ShardError

Item = TypeVar("Item")
# Errors that name a file or a sample to somebody who has to mend it; all others keep their traceback.
_OF_DATA: Final = (ShardError, SampleError, ImageError, VolumeError)


class Stream(Iterator[Item]):
    """A DataLoader's iterator whose workers end when it is closed, forgotten, or when the program ends."""

    def __init__(self, dataset: Dataset[Item], positions: Iterable[int], workers: int, prefetch: int) -> None:
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=positions,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            # Fork shares the shard table and takes any tokenizer; elsewhere the platform's own method is safer.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # Without it every new iterator would draw its base seed from, and so change, torch's global state.
            generator=torch.Generator(),
        )
        self._owner = os.getpid()
        with signals_held_back():
            self._iterator = iter(loader)
        _LIVE.add(self)

    def __next__(self) -> Item:
        """The next item; what a worker says of the data comes as if it had been read in this process."""
        try:
            return next(self._iterator)
        except _OF_DATA as error:
            # torch puts "Caught ... in DataLoader worker process" and the traceback of the worker before the message.
            _, begins, message = str(error).rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")
            if not begins:
                raise
            raise type(error)(message.rstrip("\n")) from error

    def close(self) -> None:
        """Tell the workers to end and wait for them; a second call does nothing."""
        # A fork of this process owns a copy of this object but none of its workers.
        if self._owner == os.getpid():
            shutdown = getattr(self._iterator, "_shutdown_workers", None)
            if shutdown is not None:
                shutdown()

    def __del__(self) -> None:
        if hasattr(self, "_iterator"):
            self.close()


# At exit multiprocessing sends SIGTERM, which our workers ignore, and then waits for them: it would wait for ever.
# This runs before, because it is registered after torch has imported multiprocessing.
_LIVE: Final[weakref.WeakSet[Stream[Any]]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for stream in list(_LIVE):
        stream.close()


def _start_worker(worker: int) -> None:
    """Runs first in every worker: only the training process decides when to stop, and one core is one worker's share.

    Workers that died of a scheduler's signal would make the trainer fail before it saves.
    """
    ignore_signals()
    torch.set_num_threads(1)


def _as_it_is(item: object) -> object:
    return item


__all__ = ["Stream"]
