"""Our trainer against open_clip's own (`open_clip_train`, from its wheel), on the same shards, model and precision.

python -m benchmarks.train [--quick] [--json FILE]

vit_s_32_vs_open_clip: samples/s of ours over theirs, ViT-S-32, batch 64, fp32, captions of about 20 tokens.
biomedclip_shape_vs_open_clip: the same for timm's ViT-B/16 with BERT-base at 256 positions, batch 8, random weights.
peak_memory_fraction: highest memory of our process over that of theirs; the worse of the models.

Each side is one process that runs its whole trainer; they take turns by rounds of steps. Before the rounds both train
twenty steps in fp32 on the same unaugmented batches from the same weights, and every loss must agree within 1e-4.
Images are read and decoded inside the training process on both sides (workers: 0), so that the split of a step shows
what data cost and no worker computes while the other side's clock runs. Dropout of BERT is 0: it draws random numbers.
Ours packs texts and ends the last blocks at the pooled token (`train.compute`); the losses above hold with these too.
On a machine with a GPU: ViT-B/16, batch 512, bf16, compiled on both sides, from a batch in memory, with MFU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import arguments, report
from benchmarks.train_sides import OUR_COMPUTE, PARTS, Work, run_side
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from clip_med.models.config import HFTower, ModelConfig, OpenClipModel, TimmTower, TwoTowerModel
from clip_med.models.flops import FlopCount, peak_flops
from clip_med.models.folder import build_model, load_folder, save_folder
from data_prep.phantoms.write import phantom_sample

WORDS = "seen in this study without comparison to earlier images taken with the same device"


def main() -> None:
    """Make shards and models, compare the losses, take the time of both sides."""
    options = arguments(__doc__)
    measured: dict[str, list[float]] = {}
    fractions: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_shards(root / "shards", 240 if options.quick else 640)
        for name, work in cases(root, options):
            fractions.append(compare(name, work, 3 if options.quick else 5, measured))
        if not torch.cuda.is_available():
            print("GPU section (ViT-B/16, batch 512, bf16, compiled): not run, no GPU here")
        elif not options.quick:
            on_gpu(root, measured)
    measured["peak_memory_fraction"] = [max(fractions)]
    report("train", measured, options)


def cases(root: Path, options: argparse.Namespace) -> Iterator[tuple[str, Work]]:
    """What is measured, by the name of its ratio."""
    shards = root / "shards"
    torch.manual_seed(0)
    small = save(root / "small", OpenClipModel(name="ViT-S-32"))
    work = Work(
        model=small,
        shards=shards,
        scratch=root,
        precision="fp32",
        batch=16 if options.quick else 64,
        steps=1,
        check_batch=4 if options.quick else 8,
        check_steps=20,
    )
    yield "vit_s_32_vs_open_clip", work
    if options.quick:
        return
    write_bert(root / "bert", shards)
    image, text = TimmTower(name="vit_base_patch16_224"), root / "bert"
    hf = HFTower(
        path=str(text), pooler="cls_last_hidden_state_pooler", proj="mlp", context_length=256, pretrained=False
    )
    large = save(root / "large", TwoTowerModel(image=image, text=hf, embed_dim=512))
    work = replace(work, model=large, batch=8, steps=1, check_batch=2)
    yield "biomedclip_shape_vs_open_clip", work


def on_gpu(root: Path, measured: dict[str, list[float]]) -> None:
    """ViT-B/16 on one GPU, from one batch in memory: the ratio, and how much of the GPU's peak our side uses."""
    model = save(root / "gpu", OpenClipModel(name="ViT-B-16"))
    write_shards(root / "gpu_shards", 512)
    work = Work(
        model=model,
        shards=root / "gpu_shards",
        scratch=root,
        precision="bf16",
        batch=512,
        steps=20,
        check_batch=512,
        check_steps=1,
        device="cuda",
        compiled=True,
    )
    rates: list[float] = []
    compare("vit_b_16_gpu_vs_open_clip", work, 5, measured, rates)
    encoder = load_folder(model)
    shards = ShardSet.open(work.shards)
    captions = [shards.metadata(index).captions[0] for index in range(len(shards))]
    lengths = encoder.text_tower.lengths(encoder.tokenize(captions))
    flops = FlopCount(encoder, OUR_COMPUTE[True]).step(lengths) / len(lengths)
    peak = peak_flops(torch.cuda.get_device_name(), "bf16")
    if peak is not None:
        measured["gpu_mfu"] = [rate * flops / peak for rate in rates]


def compare(
    name: str, work: Work, rounds: int, measured: dict[str, list[float]], rates: list[float] | None = None
) -> float:
    """Ratios of rounds into `measured`, and samples/s of our side into `rates`; returns the fraction of memory."""
    with sides(work) as pipes:
        first = {side: pipe.recv() for side, pipe in pipes.items()} if work.check_steps else {}
        if first and work.device == "cpu":
            check(name, first["ours"]["losses"], first["theirs"]["losses"])
        splits: dict[str, list[list[float]]] = {side: [] for side in pipes}
        ratios: list[float] = []
        peaks: dict[str, int] = {}
        for number in range(rounds + 1):
            seconds: dict[str, float] = {}
            for side, pipe in pipes.items():
                if work.check_steps or number:
                    pipe.send("go")
                answer = pipe.recv()
                seconds[side], peaks[side] = answer["seconds"], answer["peak"]
                if number:
                    splits[side] += answer["rows"] or [[answer["seconds"] / work.steps]]
            if number:
                ratios.append(seconds["theirs"] / seconds["ours"])
                if rates is not None:
                    rates.append(work.batch * work.steps / seconds["ours"])
        for pipe in pipes.values():
            pipe.send("stop")
    for side, rows in splits.items():
        print(f"{name}: {side}: {split(rows, work.batch)}, peak {peaks[side] / 2**30:.2f} GiB", flush=True)
    measured[name] = ratios
    return peaks["ours"] / peaks["theirs"]


@contextmanager
def sides(work: Work) -> Iterator[dict[str, Any]]:
    """Pipes to the two processes; both have ended when this has."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    processes = []
    with tempfile.TemporaryDirectory(dir=work.scratch) as scratch:
        try:
            for side in ("ours", "theirs"):
                pipes[side], other = context.Pipe()
                process = context.Process(target=run_side, args=(side, replace(work, scratch=Path(scratch)), other))
                process.start()
                other.close()  # so that a side that dies ends our waiting
                processes.append(process)
            yield pipes
        except EOFError:
            logs = [path.read_text(encoding="utf-8")[-2000:] for path in Path(scratch).glob("*.log")]
            raise RuntimeError("a side ended too early:\n" + "\n".join(logs)) from None
        finally:
            for pipe in pipes.values():
                pipe.close()
            for process in processes:
                process.join(timeout=20)
                process.kill()
                process.join()


def check(name: str, ours: list[float], theirs: list[float]) -> None:
    """Both trained on the same batches from the same weights: every loss agrees within 1e-4."""
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name}: {len(ours)} steps in fp32, loss {ours[0]:.4f} to {ours[-1]:.4f}, largest difference {worst:.1e}",
        flush=True,
    )
    assert abs(ours[0] - ours[-1]) > 100 * 1e-4, "the losses hardly moved: their agreement says nothing"
    assert worst < 1e-4, f"the loss curves differ: {ours} against {theirs}"


def split(rows: list[list[float]], batch: int) -> str:
    """Samples per second and the median milliseconds of each part of a step."""
    seconds = statistics.median(map(sum, rows))
    if len(rows[0]) != len(PARTS):
        return f"{batch / seconds:.2f} samples/s"
    parts = zip(PARTS, (statistics.median(column) for column in zip(*rows, strict=True)), strict=True)
    return f"{batch / seconds:.2f} samples/s, ms: " + ", ".join(f"{part} {1000 * value:.0f}" for part, value in parts)


def save(folder: Path, config: ModelConfig) -> Path:
    """A model folder that both sides load, so that they start from the same weights."""
    save_folder(build_model(config), folder)
    return folder


def write_shards(folder: Path, count: int) -> None:
    """Phantoms of 256 px, each caption drawn out to 13 to 27 words and signs, 20 in the mean."""
    with ShardWriter(folder, samples_per_shard=160) as writer:
        for index in range(count):
            sample = phantom_sample(index, "train", size=256)
            words = " ".join(WORDS.split()[: 5 + index % 6])
            writer.add(replace(sample, captions=(f"{sample.captions[0].rstrip('.')} {words}.",)))


def write_bert(folder: Path, shards: Path) -> None:
    """BERT-base without dropout, and a tokenizer that knows the words of the captions; random weights, no download."""
    from transformers import BertConfig, BertTokenizerFast  # type: ignore[attr-defined]

    read = ShardSet.open(shards)
    words = {word for i in range(len(read)) for word in read.metadata(i).captions[0].lower().replace(".", " .").split()}
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)


if __name__ == "__main__":
    main()
