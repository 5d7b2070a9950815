"""The wheel alone, in an environment that does not know this checkout, from another directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_on_its_own(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(ROOT), cwd=tmp_path)
    wheel = next(tmp_path.glob("clip_med-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "clip_med/cli.py",
        "clip_med/_configs/pretrain/demo.yaml",
        "clip_med/knowledge/base/kidney_ct.yaml",
        "data_prep/caption_templates.yaml",
        "zero_shot/suite.py",
        "slurm/__init__.py",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]

    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env"), cwd=tmp_path)
    python = str(tmp_path / "env/bin/python")
    site = next((tmp_path / "env/lib").glob("python*")) / "site-packages"
    # The libraries of this environment, but not its editable install: a path that stands in a .pth file is not itself
    # searched for .pth files.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(wheel))
    run(*pip, cwd=tmp_path)
    where = run(python, "-c", "import clip_med, zero_shot; print(clip_med.__file__, zero_shot.__file__)", cwd=tmp_path)
    assert all(str(site) in path for path in where.split())

    command = str(tmp_path / "env/bin/clip-med")
    assert "pretrain" in run(command, "--help", cwd=tmp_path)
    listed = json.loads(run(command, "config", "list", "--json", cwd=tmp_path))
    assert "pretrain/demo" in listed
    counts = ("--train", "32", "--test", "8", "--val", "0", "--heldout", "0", "--size", "32")
    run(command, "data", "phantoms", "phantoms", *counts, cwd=tmp_path)
    sizes = (
        "--model.image-size",
        "32",
        "--model.image-width",
        "2",
        "--model.text-width",
        "16",
        "--model.text-heads",
        "1",
    )
    training = ("--shards", "phantoms/train", "--train.batch-size", "16", "--train.schedule.warmup-samples", "0")
    out = run(
        command, "pretrain", "pretrain/demo", "--run", "run", "--json", "--loader.workers", "0", *sizes, *training,
        "--train.epochs", "1", cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(out)["samples"] == 32
    run(command, "export", "run", "model", cwd=tmp_path)
    assert (tmp_path / "model/open_clip_config.json").is_file()
