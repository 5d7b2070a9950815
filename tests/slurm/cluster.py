"""A real Slurm cluster on loopback: munged, slurmctld and one slurmd for each node, all in one temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")


def why_not() -> str | None:
    """Why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a Slurm cluster on one machine needs root: its daemons start processes for other users"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (Debian: apt-get install --no-install-recommends slurm-wlm munge)"
    return None


class Cluster:
    """Nodes node1, node2, ... in pairs: both nodes of pair P have the feature `pairP`, so that a test can have its own.

    Partitions: `main`, and `preempt`, whose jobs are requeued, after 20 s of grace, when a job in `main` wants their
    node. The settings are those of a cluster whose administrators changed nothing that concerns signals: TERM announces
    preemption. KillWait is 20 s instead of 30. Stopping ends what was started and nothing else.
    """

    def __init__(self, folder: Path, *, pairs: int, cpus: int = 4) -> None:
        self.folder = folder
        self.pairs = pairs
        self.cpus = cpus
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: dict[str, float] = {}
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes."""
        return [f"node{i + 1}" for i in range(2 * self.pairs)]

    def __enter__(self) -> Cluster:
        for name in ("run", "log", "state", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        # Slurm's users must reach the socket; munge insists on a path that only its owner can write.
        for path in (self.folder, self.folder / "run"):
            path.chmod(0o755)
        (self.folder / "slurm.conf").write_text(self._settings())
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        try:
            run, log = self.folder / "run", self.folder / "log"
            self._start(
                "munged",
                *("--foreground", "--force", f"--key-file={self.folder / 'munge.key'}"),
                *(f"--socket={run / 'munge.socket'}", f"--pid-file={run / 'munged.pid'}"),
                *(f"--seed-file={run / 'munged.seed'}", f"--log-file={log / 'munged.log'}"),
            )
            self.wait_for("munged", (run / "munge.socket").exists)
            self._start("slurmctld", "-D", "-c")
            for node in self.nodes:
                self.start_node(node)
            idle = ("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T")
            self.wait_for("idle nodes", lambda: self.call(*idle).split().count("idle") == len(self.nodes))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Cancel all jobs and end the daemons, and what they have started."""
        if "slurmctld" in self.daemons:
            with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
                self.call("scancel", "--user=root")
                self.wait_for("an empty queue", lambda: not self.call("squeue", "--noheader"), seconds=30)
        for name in sorted(self.daemons, key=lambda name: (name == "munged", name == "slurmctld")):
            self.stop_daemon(name)
        for pid, _ in list(self._processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._start(f"slurmd.{node}", "-D", "-N", node)

    def stop_daemon(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon and wait for it."""
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(timeout=15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def kill_node(self, node: str) -> None:
        """SIGKILL to a node's slurmd, its step daemons and all its tasks: what a power cut does."""
        self.stop_daemon(f"slurmd.{node}", signal.SIGKILL)
        for pid, environment in list(self._processes()):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if environment.get("SLURMD_NODENAME") == node and "slurmstepd" in _command(parent):
                os.kill(parent, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)

    def ranks(self, job: str) -> dict[int, int]:
        """Process ids of a job's running tasks by rank; not of what they have started."""
        found: dict[int, int] = {}
        for pid, environment in self._processes():
            if environment.get("SLURM_JOB_ID") != job or int(environment.get("SLURM_STEP_ID", "0xffffffff"), 0) > 10**6:
                continue
            if environment.get("SLURM_TASK_PID") == str(pid):
                found[int(environment["SLURM_PROCID"])] = pid
        return found

    def call(self, *command: str, check: bool = True, **options: object) -> str:
        """Run one of Slurm's programs, or any other, against this cluster; returns what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False, **options
        )  # type: ignore[call-overload]
        if check and done.returncode != 0:
            raise subprocess.SubprocessError(f"{command}: {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Slurm's word for a job: RUNNING, PENDING, ..., or NONE when it has forgotten the job."""
        shown = self.call("scontrol", "show", "job", job, "--oneliner", check=False)
        return shown.partition("JobState=")[2].split(" ")[0] or "NONE"

    def lift_hold(self, job: str) -> None:
        """Let a requeued job start two seconds after it was first seen waiting; Slurm holds it for two minutes.

        It does so with reason: of a start within a tenth of a second the credential is revoked (3 of 30 jobs failed).
        """
        if self.call("squeue", "--noheader", f"--jobs={job}", "--format=%r", check=False) != "BeginTime":
            return
        if time.monotonic() - self._seen.setdefault(job, time.monotonic()) > 2:
            self.call("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)
            del self._seen[job]

    def wait_for(self, what: str, happened: Callable[[], object], *, seconds: float = 120) -> None:
        """Poll until it happens.

        Raises:
            TimeoutError: it did not.
        """
        end = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds} s\n{self.call('squeue', check=False)}")
            time.sleep(0.1)

    def _start(self, name: str, *arguments: str) -> None:
        program = name.partition(".")[0]
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [program, *arguments], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _processes(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """Processes that jobs of this cluster have started, with their environments."""
        mine = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        daemons = {daemon.pid for daemon in self.daemons.values()}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in daemons:
                continue
            try:
                lines = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended, or is not ours
            if mine in lines and any(line.startswith(b"SLURM_JOB_ID=") for line in lines):
                pairs = (line.decode(errors="replace").partition("=") for line in lines)
                yield int(entry.name), {key: value for key, _, value in pairs}

    def _settings(self) -> str:
        folder, ports = self.folder, _free_ports(1 + len(self.nodes))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=16000 "
            f"Feature=pair{i // 2 + 1}"
            for i, (node, port) in enumerate(zip(self.nodes, ports[1:], strict=True))
        )
        return f"""ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool/%n
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=20
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=preempt Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
"""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
