"""The two sides of `benchmarks.train`, each a process that runs a real trainer and stops for the other between rounds.

Ours is `clip_med.pretrain.pretrain`, theirs `open_clip_train.main.main`. Nothing inside either is replaced but the
source of batches, and that only for the steps whose losses are compared (on a GPU: for all). The clock hangs on hooks
that both sides pass: the first module with weights called, `Tensor.backward`, the optimiser's step.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from clip_med.models.compute_config import ComputeConfig

# Not compiled, and compiled; the same losses and gradients as the plain towers (tests/models/test_compute.py).
OUR_COMPUTE = (
    ComputeConfig(pack_text=True, pooled_last_block=True),
    ComputeConfig(compile=True, text_multiple=16, pooled_last_block=True),
)
PARTS = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What both sides do: `check_steps` on fixed batches of `check_batch`, then rounds of `steps` on the shards."""

    model: Path
    shards: Path
    scratch: Path
    precision: str
    batch: int
    steps: int
    check_batch: int
    check_steps: int
    device: str = "cpu"
    compiled: bool = False

    @property
    def samples(self) -> int:
        """More than any run of the benchmark uses: no epoch ends while the clock runs."""
        return 1_000_000 * self.batch


class Stop(BaseException):
    """Ends a trainer from inside, once the benchmark has seen enough."""


class Clock:
    """Seconds of each part of each step, and the loss of each; hands both over after every round.

    data: from the end of the optimiser's step to the first module (reading, decoding, logging); forward: to the call
    of backward, loss included; backward: that call; optimizer: to the end of its step, clipping included. On a GPU
    only the whole of a round means anything.
    """

    def __init__(self, work: Work, pipe: Connection) -> None:
        self.work, self.pipe = work, pipe
        self.losses: list[float] = []
        self.rows: list[list[float]] = []
        self.marks: list[float] = []
        self.began = 0.0

    def install(self) -> None:
        """Hang the clock on this process; the first round begins when the other side of the pipe says so."""
        import torch
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook

        original = torch.Tensor.backward

        def backward(tensor: Any, *args: Any, **kwargs: Any) -> None:
            self.losses.append(float(tensor.detach()))
            self.marks.append(time.perf_counter())
            original(tensor, *args, **kwargs)
            self.marks.append(time.perf_counter())

        def forward(module: Any, inputs: object) -> None:
            # torchvision's transforms are modules too, but have no weights.
            if len(self.marks) == 1 and next(module.parameters(), None) is not None:
                self.marks.append(time.perf_counter())

        def stepped(optimizer: object, args: object, kwargs: object) -> None:
            self.end_of_step()

        torch.Tensor.backward = backward  # type: ignore[method-assign]
        if self.work.device == "cpu":
            register_module_forward_pre_hook(forward)
        register_optimizer_step_post_hook(stepped)
        self.began = time.perf_counter()
        self.marks = [self.began]

    def end_of_step(self) -> None:
        """Keep the parts of the step; at the end of a round send them and wait."""
        now = time.perf_counter()
        if len(self.marks) == 4:
            self.rows.append([after - before for before, after in itertools.pairwise([*self.marks, now])])
        done = len(self.losses) - self.work.check_steps
        if done == 0 or (done > 0 and done % self.work.steps == 0):
            if self.work.device == "cuda":
                import torch

                torch.cuda.synchronize()
            seconds, peak = time.perf_counter() - self.began, peak_bytes(self.work.device)
            self.pipe.send({"losses": self.losses, "rows": self.rows, "seconds": seconds, "peak": peak})
            self.rows = []
            if self.pipe.recv() != "go":
                raise Stop
            now = self.began = time.perf_counter()
        self.marks = [now]


def peak_bytes(device: str) -> int:
    """Highest memory so far: of the process, or of what it allocated on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_side(side: str, work: Work, pipe: Connection) -> None:
    """Entry point of a process: everything that it prints goes to `SIDE.log`."""
    log = os.open(work.scratch / f"{side}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    Clock(work, pipe).install()
    with contextlib.suppress(Stop):
        {"ours": ours, "theirs": theirs}[side](work)


def ours(work: Work) -> None:
    """`pretrain` with `OUR_COMPUTE` and else with its defaults, but for what both sides are given alike."""
    from clip_med import pretrain as module
    from clip_med.data.loader import LoaderConfig, TrainLoader
    from clip_med.losses.config import InfoNCEConfig
    from clip_med.models.config import FolderModel
    from clip_med.training.config import OptimConfig, ScheduleConfig, TrainConfig

    class FixedFirst(TrainLoader):
        """The fixed batches, then those of the shards."""

        fixed: Iterator[Any] | None = None

        def __next__(self) -> Any:
            if self.fixed is None:
                self.fixed = fixed_batches(work, self._batches.tokenize)
            batch = next(self.fixed, None)
            return super().__next__() if batch is None else batch

    module.TrainLoader = FixedFirst  # type: ignore[misc]
    config = module.PretrainConfig(
        shards=(str(work.shards),),
        model=FolderModel(path=work.model),
        loss=InfoNCEConfig(),
        loader=LoaderConfig(workers=0, positives="none"),
        train=TrainConfig(
            samples=work.samples,
            batch_size=work.batch,
            precision=work.precision,  # type: ignore[arg-type]
            optim=OptimConfig(lr=LEARNING_RATE),
            schedule=ScheduleConfig(floor=1.0),
            save_every_samples=work.samples,
            log_every_steps=work.steps,
            compute=OUR_COMPUTE[work.compiled],
        ),
    )
    module.pretrain(config, work.scratch / "ours", device=work.device)  # type: ignore[arg-type]


# Adam moves every weight by about this much in each step, whatever the loss: at 5e-4, the default of both, rounding
# errors of fp32 would grow with it until two correct trainers could not be told from two different ones. The time of a
# step does not depend on it.
LEARNING_RATE = 1e-5


def theirs(work: Work) -> None:
    """open_clip's trainer with its defaults but for what both sides are given alike."""
    if find_spec("pandas") is None:
        # Its data module imports pandas at its head, for the reader of CSV files alone.
        sys.modules["pandas"] = module_from_spec(ModuleSpec("pandas", None))
    from open_clip_train import data as reading
    from open_clip_train import main as module

    # webdataset 0.2.90 and later put a mark without a name between shards, on which open_clip's reader fails.
    reading.tar_file_expander = partial(reading.tar_file_expander, eof_value=None)
    get_data = module.get_data

    def data(args: Any, transforms: Any, epoch: int = 0, tokenizer: Any = None) -> dict[str, Any]:
        made = get_data(args, transforms, epoch=epoch, tokenizer=tokenizer)
        loader = made["train"].dataloader
        made["train"].dataloader = FixedThen(work, tokenizer, loader)
        return made

    module.get_data = data
    precision = {"fp32": "fp32", "bf16": "amp_bf16"}[work.precision]
    tars = sorted(path.name for path in work.shards.glob("*.tar"))
    arguments = {
        "model": f"local-dir:{work.model}",
        "train-data": "::".join(str(work.shards / name) for name in tars),
        "train-num-samples": work.samples,
        "dataset-type": "webdataset",
        "batch-size": work.batch,
        "workers": 0,
        "epochs": 1,
        "precision": precision,
        "lr": LEARNING_RATE,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "wd": 0.2,
        "warmup": 0,
        "lr-scheduler": "const",
        "grad-clip-norm": 1.0,
        "logs": work.scratch / "theirs",
        "name": "run",
        "device": work.device,
    }
    flags = ["--torchcompile"] if work.compiled else []
    module.main([text for name, value in arguments.items() for text in (f"--{name}", str(value))] + flags)


class FixedThen:
    """A loader in open_clip's sense: normalised images and padded tokens of the fixed batches, then its own."""

    def __init__(self, work: Work, tokenizer: Any, loader: Any) -> None:
        self.work, self.tokenizer, self.loader = work, tokenizer, loader
        self.num_batches, self.num_samples = loader.num_batches, loader.num_samples

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch

        preprocess = read_preprocess(self.work)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
        for batch in fixed_batches(self.work, self.tokenizer):
            yield batch.images.float() * (1 / (255 * std)) + (-mean / std), batch.tokens
        yield from self.loader


def read_preprocess(work: Work) -> Any:
    """The preprocessing that the model folder states."""
    import json

    from clip_med.data.images import Preprocess

    document = json.loads((work.model / "open_clip_config.json").read_text(encoding="utf-8"))
    return Preprocess.from_open_clip(document["preprocess_cfg"])


def fixed_batches(work: Work, tokenize: Any) -> Iterator[Any]:
    """The first samples in stored order, not augmented, each pair its own only positive; on a GPU for ever."""
    from clip_med.data.loader import eval_batches
    from clip_med.data.shards import ShardSet

    wanted = range(work.check_steps * work.check_batch)
    batches = eval_batches(
        ShardSet.open(work.shards), wanted, read_preprocess(work), batch_size=work.check_batch, tokenize=tokenize
    )
    alone = (replace(batch, group_ids=batch.indices[:, None]) for batch in batches)
    return itertools.cycle(alone) if work.device == "cuda" else alone


__all__ = ["OUR_COMPUTE", "PARTS", "Work", "run_side"]
