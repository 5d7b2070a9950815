"""Submission, looking after, sweeps and data on a real Slurm; what happens to a run by faults is in test_faults.py."""

from __future__ import annotations

import dataclasses
import http.server
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_med.cli import main
from clip_med.config import load_config
from clip_med.models.folder import build_model, save_folder
from slurm.job import JobSpec
from slurm.record import queue, read_events, status
from slurm.submit import submit_run
from slurm.sweep import sweep_status
from tests.labelled_shards import write_labelled
from tests.slurm.cluster import Cluster
from tests.tiny_run import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def spec(cluster: Cluster) -> JobSpec:
    # The last pair: the runs of test_faults.py have the others.
    local = load_config(JobSpec, "slurm/local")
    return dataclasses.replace(local, nodes=1, python=sys.executable, constraint=f"pair{cluster.pairs}")


def command(*words: str) -> list[str]:
    """What follows `python -m` to run a few lines of Python; without torch it starts at once."""
    return ["tests.slurm.lines", *words]


def wait(cluster: Cluster, *runs: Path) -> None:
    def over() -> bool:
        jobs = queue()
        found = [status(run, jobs) for run in runs]
        for one in found:
            if one.state == "pending":
                cluster.lift_hold(str(one.job))
        return all(one.state not in ("pending", "running") for one in found)

    cluster.wait_for("the end of the jobs", over, seconds=200)


def test_a_hostile_folder_and_words_reach_the_job_as_they_are(cluster: Cluster, spec: JobSpec, tmp_path: Path) -> None:
    run = tmp_path / 'a  b\'s "$(touch hostile)" %j #x;&'
    submit_run(spec, command("import sys; print(*sys.argv[1:], sep='|')", "$(touch hostile)", "c  d", "`e`"), run=run)
    wait(cluster, run)
    job = status(run, queue()).job
    assert (run / f"slurm/{job}.log").read_text() == "$(touch hostile)|c  d|`e`\n"
    shown = cluster.call("scontrol", "show", "job", str(job))
    assert f"JobName={run.name}\n" in shown
    assert not Path("hostile").exists()
    assert not list(tmp_path.rglob("hostile"))


def test_a_job_that_always_crashes_is_started_so_many_times_and_no_more(
    cluster: Cluster, spec: JobSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "crashes"
    submit_run(dataclasses.replace(spec, max_crashes=2), command("raise SystemExit(7)"), run=run)
    wait(cluster, run)
    assert [event["event"] for event in read_events(run)] == [
        "submitted",
        *("start", "crashed") * 2,
        *("start", "failed"),
    ]
    assert main(["slurm", "status", str(run), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["runs"]
    assert (shown["state"], shown["starts"], shown["crashes"]) == ("failed", 3, 3)
    assert "exit code 7" in shown["detail"]


def test_a_run_is_looked_after_by_its_folder(
    cluster: Cluster, spec: JobSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    wait_for_flag = f"list(time.sleep(0.1) for _ in iter(pathlib.Path({str(flag)!r}).exists, True))"
    words = command(f"import time, pathlib; print('here', flush=True); {wait_for_flag}; print('there')")
    job = submit_run(spec, words, run=run)
    with pytest.raises(ValueError, match=f"job {job} of this run is still in the queue"):
        submit_run(spec, words, run=run)
    cluster.wait_for("output", lambda: "here" in "".join(f.read_text() for f in (run / "slurm").glob("*.log")))
    assert main(["slurm", "status", str(run)]) == 0
    assert f"running  {job}" in capsys.readouterr().out
    assert main(["slurm", "logs", str(run)]) == 0
    assert capsys.readouterr().out == "here\n"
    assert main(["slurm", "cancel", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cancelled": job}
    wait(cluster, run)
    assert status(run, queue()).state == "cancelled"
    assert main(["slurm", "cancel", str(run)]) == 2
    assert f"job {job} is not in the queue" in capsys.readouterr().err
    # By hand again: a new job, as the first was; and now it may end.
    assert main(["slurm", "requeue", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["job"]
    assert again != job
    flag.touch()
    assert main(["slurm", "logs", str(run), "--follow"]) == 0
    assert capsys.readouterr().out == "here\nthere\n"
    assert status(run, queue()).state == "done"


def test_what_sbatch_refuses_is_said_in_one_line(cluster: Cluster, tiny_yaml: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sbatch refused the job: .*[Ii]nvalid partition name specified") as caught:
        submit_run(JobSpec(partition="nothing"), command("0"), run=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/slurm.json").exists()


def test_a_sweep_with_a_failing_task_and_the_missing_one_again(
    cluster: Cluster, tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, absent = tmp_path / "sweep", tmp_path / "absent.yaml"
    arguments = ["--config", "slurm/local", "--job.nodes=1", f"--job.constraint=pair{cluster.pairs}", "--json"]
    grid = ["--grid", f"config={tiny_yaml},{absent}", "--grid", "seed=0,1"]
    words = ["pretrain", "{config}", "--run", "{run}", "--device", "cpu", "--train.seed={seed}", "--train.samples=24"]
    assert main(["slurm", "sweep", str(folder), *arguments, *grid, "--", *words]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["tasks"] == 4
    runs = [task.run for task, _ in sweep_status(folder)]
    wait(cluster, *runs)
    assert [one.state for _, one in sweep_status(folder)] == ["done", "done", "failed", "failed"]
    assert main(["slurm", "status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "2 done, 2 failed" in shown
    assert "bad input (exit code 2)" in shown
    assert main(["slurm", "logs", str(runs[2])]) == 0
    assert "absent.yaml: no such configuration file" in capsys.readouterr().out
    # The cause is mended; only what is missing runs again.
    absent.write_text(tiny_yaml.read_text())
    assert main(["slurm", "resubmit", str(folder), "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["tasks"] == [run.name for run in runs[2:]]
    wait(cluster, *runs)
    assert [one.state for _, one in sweep_status(folder)] == ["done"] * 4
    jobs = [one.job for _, one in sweep_status(folder)]
    assert jobs == [*(f"{first['job']}_{i}" for i in (0, 1)), *(f"{second['job']}_{i}" for i in (2, 3))]
    assert all(one.step == 3 and one.finished for _, one in sweep_status(folder))
    assert main(["slurm", "resubmit", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"job": None, "tasks": []}


def test_a_few_shot_grid_in_parts_is_the_grid_in_one(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_folder(build_model(TINY), tmp_path / "model")
    for split in ("train", "test"):
        write_labelled(tmp_path / "data" / split, {i: {"group": f"{split}{i}"} for i in range(24)})
    (tmp_path / "grid.yaml").write_text(
        f"{{model: {tmp_path}/model, tasks: [{{name: odd, train: {tmp_path}/data/train, test: {tmp_path}/data/test}}], "
        "methods: [{kind: zero_shot}, {kind: task_res}], shots: [1], seeds: [0, 1], fits: {task_res: {epochs: 2}}}"
    )
    grid = [
        "tune",
        "grid",
        str(tmp_path / "grid.yaml"),
        "--device",
        "cpu",
        "--cache",
        str(tmp_path / "features"),
        "--out",
    ]
    folder = tmp_path / "sweep"
    arguments = ["--config", "slurm/local", "--job.nodes=1", f"--job.constraint=pair{cluster.pairs}"]
    words = ["--grid", "part=0/2,1/2", "--", *grid, "{run}", "--part", "{part}"]
    assert main(["slurm", "sweep", str(folder), *arguments, *words]) == 0
    wait(cluster, *(task.run for task, _ in sweep_status(folder)))
    assert [one.state for _, one in sweep_status(folder)] == ["done"] * 2
    assert main([*grid, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    tables: list[list[object]] = []
    for runs in ([tmp_path / "whole"], sorted(folder.glob("*_part-*"))):
        assert main(["tune", "table", *map(str, runs), "--json"]) == 0
        tables.append(json.loads(capsys.readouterr().out))
    assert tables[0]
    assert tables[0] == tables[1]


@pytest.fixture
def counting_server(tiny_yaml: Path) -> Iterator[tuple[str, Counter[str]]]:
    """The tiny shards at a URL, and how often each file was asked for."""
    counts: Counter[str] = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            counts[self.path] += 1
            super().do_GET()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    def handler(*arguments: object) -> Handler:
        return Handler(*arguments, directory=str(tiny_yaml.parent))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/shards", counts
        server.shutdown()


def test_the_ranks_of_a_node_download_each_shard_once_and_share_its_cores(
    cluster: Cluster, spec: JobSpec, counting_server: tuple[str, Counter[str]], tmp_path: Path
) -> None:
    url, counts = counting_server
    # What names the node's own disk on a cluster; here all nodes are one machine.
    words = command(
        f"import os; os.environ['SLURM_TMPDIR'] = os.path.join({str(tmp_path)!r}, os.environ['SLURMD_NODENAME']); "
        "from clip_med.data.shards import ShardSet; from clip_med.data.cores import own_cores; "
        f"shards = ShardSet.open({url!r}); "
        "print(sum(len(shards.read(i).image) > 0 for i in range(len(shards))), own_cores())"
    )
    two = dataclasses.replace(spec, nodes=2, tasks_per_node=2, cpus_per_task=1)
    submit_run(two, words, run=tmp_path / "run")
    wait(cluster, tmp_path / "run")
    job = status(tmp_path / "run", queue()).job
    assert (tmp_path / f"run/slurm/{job}.log").read_text().splitlines() == ["40 1"] * 4
    tars = {path: count for path, count in counts.items() if path.endswith(".tar")}
    assert len(tars) == 3
    assert set(tars.values()) == {2}
    for node in cluster.nodes[-2:]:
        assert len(list((tmp_path / node / "clip-med/shards").glob("*.tar"))) == 3
