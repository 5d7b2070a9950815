"""A job as readable sbatch text: a pure function of its description. Nothing is submitted here.

The script requeues the run itself, in one place for all causes. It runs beside rank 0 (Slurm starts it on the first
node), outside any container, and looks at what the ranks left when all of them have ended: `requeue.json` means saved
and unfinished, whatever the exit code. Requeueing ends the job's processes, so it is the last thing that is done.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from slurm.job import JobSpec, has_control

_PLAIN: Final = re.compile(r"[\w.,:@%+/=-]+", re.ASCII)

_FUNCTIONS: Final = r"""
# One line of the run's record.
note() {
  printf '{"event": "%s", "job": "%s", "start": %d, "code": %d, "nodes": "%s", "time": %d}\n' \
    "$1" "$job" "${SLURM_RESTART_COUNT:-0}" "$2" "$SLURM_JOB_NODELIST" "$(date +%s)" >> "$run/slurm/events.jsonl"
}

# Put this job back into the queue, $1 seconds from now.
requeue() {
  # When Slurm has requeued or cancelled the job itself, it is no longer running, and there is nothing to do.
  if command -v squeue > /dev/null; then
    [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ] || return 0
  fi
  if command -v scontrol > /dev/null; then
    sleep "$1"
    scontrol requeue "$SLURM_JOB_ID" && return 0
  fi
  # No scontrol on this node, or it may not requeue: a new job from the same script, once this one has ended.
  next="$(env -u SLURM_RESTART_COUNT sbatch --parsable ${SLURM_ARRAY_TASK_ID:+--array="$SLURM_ARRAY_TASK_ID"} \
    --dependency="afterany:$SLURM_JOB_ID" --begin="now+$1" "$0")"
  job="${next%%;*}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}" note resubmitted 0
}
"""

_RENDEZVOUS: Final = r"""
# Where the ranks meet: this node, at a port that follows from the job's number, below those that Linux gives to
# outgoing connections; the next one where it is taken.
port=$((20000 + 10 * SLURM_JOB_ID % 10000))
while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done
export MASTER_PORT="$port"
"""

_END: Final = r"""
if [ -e "$run/requeue.json" ]; then
  note stopped "$code"
  requeue 0
elif [ "$code" = 0 ]; then
  note done 0
elif [ "$code" = 2 ]; then
  note refused 2  # bad input stays bad
else
  crashes=$(($(cat "$run/slurm/crashes" 2> /dev/null || echo 0) + 1))
  echo "$crashes" > "$run/slurm/crashes"
  if [ "$crashes" -gt "$max_crashes" ]; then
    note failed "$code"
  else
    note crashed "$code"
    requeue $((crash_backoff_s << (crashes - 1)))
  fi
fi
exit "$code"
"""


def render_job(spec: JobSpec, words: Sequence[str], *, name: str, run: Path, cwd: Path) -> str:
    """The script that runs `python -m WORDS` in every rank, and requeues it until it is done.

    Args:
        words: module and arguments, for example `["clip_med", "pretrain", "a.yaml", "--run", "runs/a"]`.
        name: of the job.
        run: the run folder; the log goes to `slurm/JOB.log` in it, the record to `slurm/events.jsonl`.
        cwd: working directory of the job, to which relative paths in configurations refer.

    Raises:
        ValueError: name, path or word that cannot stand in a script.

    Example:
        >>> text = render_job(JobSpec(nodes=2), ["clip_med", "--help"], name="x", run=Path("runs/x"), cwd=Path("."))
        >>> "#SBATCH --nodes=2" in text
        True
    """
    subject = [f"run={_quoted(str(run))}", f"command=({' '.join(map(_quoted, words))})"]
    return _script(spec, subject, name=name, output=run / "slurm/%j.log", cwd=cwd)


def render_array(spec: JobSpec, indices: Sequence[int], *, name: str, folder: Path, cwd: Path) -> str:
    """The script of a job array: task i runs line i (from 0) of `slurm/tasks.sh` in the folder, see `task_line`.

    Raises:
        ValueError: no index, or a name or path that cannot stand in a script.
    """
    if not indices:
        raise ValueError(f"{folder}: there is no task to run")
    lines = "$((SLURM_ARRAY_TASK_ID + 1))p"
    subject = [f'source <(sed -n "{lines}" {_quoted(str(folder / "slurm/tasks.sh"))})']
    array = ",".join(map(str, indices)) + (f"%{spec.array_limit}" if spec.array_limit else "")
    return _script(spec, subject, name=name, output=folder / "slurm/%A_%a.log", cwd=cwd, array=array)


def task_line(words: Sequence[str], run: Path) -> str:
    """One task of an array: its run folder, and what follows `python -m`."""
    return f"run={_quoted(str(run))}; command=({' '.join(map(_quoted, words))})"


def _script(
    spec: JobSpec, subject: Sequence[str], *, name: str, output: Path, cwd: Path, array: str | None = None
) -> str:
    if "\\" in str(output):
        raise ValueError(f"{output}: Slurm gives a backslash in the path of a log a meaning of its own")
    log = str(output.parent).replace("%", "%%") + f"/{output.name}"
    options = {"job-name": name, "chdir": str(cwd), "output": log}
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={_sbatch_value(value)}" for key, value in options.items())]
    lines += [*(f"#SBATCH --{option}" for option in _options(spec, array)), ""]
    lines += ["# What runs, and the folder of its record.", *subject]
    lines += ['mkdir -p "$run/slurm"']
    lines += ['job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"', 'job="${job:-$SLURM_JOB_ID}"']
    lines += [f"max_crashes={spec.max_crashes}", f"crash_backoff_s={spec.crash_backoff_s}"]
    lines += [_FUNCTIONS.rstrip(), "", "note start 0"]
    lines += ["# A request that an earlier start has answered.", 'rm -f "$run/requeue.json"', ""]
    lines += ["# Signals that announce preemption or the time limit are for the ranks; this shell waits for them."]
    lines += ["trap : TERM USR1 USR2", ""]
    lines += ["set -e", *spec.setup, *_exports(spec), _RENDEZVOUS.rstrip(), ""]
    lines += ["code=0", f"{_launch(spec)} || code=$?", "set +e", _END.strip()]
    return "\n".join(lines) + "\n"


def _options(spec: JobSpec, array: str | None) -> list[str]:
    per_node = 1 if spec.launcher == "torchrun" else spec.ranks_per_node
    options = {
        "nodes": spec.nodes,
        "ntasks-per-node": per_node,
        "gpus-per-node": spec.gpus_per_node or None,
        "cpus-per-task": spec.cpus_per_task * spec.ranks_per_node // per_node,
        "mem": spec.memory,
        "time": spec.time,
        "partition": spec.partition,
        "account": spec.account,
        "qos": spec.qos,
        "constraint": spec.constraint,
        "array": array,
        "mail-user": spec.mail_user,
        "mail-type": spec.mail_type if spec.mail_user else None,
        "signal": f"{spec.signal}@{spec.warn_seconds}",
        # The same log across requeues.
        "open-mode": "append",
    }
    # Slurm itself requeues after preemption without grace and after the failure of a node.
    return [*(f"{key}={value}" for key, value in options.items() if value is not None), "requeue", *spec.options]


def _exports(spec: JobSpec) -> list[str]:
    lines = [f"export OMP_NUM_THREADS={spec.cpus_per_task}"]
    entries = dict(entry.split("=", 1) for entry in spec.environment)
    if spec.launcher == "torchrun":
        # With the shared store, in-job restarts hang or fail after a rank has been killed (measured: 7 of 18).
        entries = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | entries
    if "MASTER_ADDR" not in entries:
        lines.append('export MASTER_ADDR="$SLURMD_NODENAME"')
    return lines + [f"export {key}={shlex.quote(value)}" for key, value in entries.items()]


def _launch(spec: JobSpec) -> str:
    """The line that starts the ranks. srun takes no cpus-per-task from sbatch since Slurm 22.05."""
    python = _quoted(spec.python or "python")
    pyxis: list[str] = []
    inside = ""
    if spec.container is not None and spec.container_runtime == "pyxis":
        mounts = ",".join(spec.container_mounts)
        pyxis = [f"--container-image={spec.container}", *([f"--container-mounts={mounts}"] if mounts else [])]
    elif spec.container is not None:
        words = ["apptainer", "exec", *(["--nv"] if spec.gpus_per_node else [])]
        for mount in spec.container_mounts:
            words += ["--bind", mount]
        inside = " ".join(map(_quoted, [*words, spec.container])) + " "
    cpus = spec.cpus_per_task * (spec.ranks_per_node if spec.launcher == "torchrun" else 1)
    srun = " ".join(["srun --kill-on-bad-exit=1", f"--cpus-per-task={cpus}", *map(_quoted, pyxis)])
    if spec.launcher == "srun":
        # The variables that torchrun would set; ranks have numbers in their processes only, hence the inner shell.
        place = 'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS" exec "$@"'
        return f'{srun} {inside}bash -c {shlex.quote(place)} rank {python} -m "${{command[@]}}"'
    agent = (
        # The agent would die of USR1 and USR2 and leave its ranks behind; they catch what it ignores.
        'trap "" USR1 USR2; '
        f"exec {inside}{python} -m torch.distributed.run --nnodes={spec.nodes} --nproc-per-node={spec.ranks_per_node} "
        '--node-rank="$SLURM_NODEID" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" -m -- "$@"'
    )
    return f'{srun} bash -c {shlex.quote(agent)} torchrun "${{command[@]}}"'


def _quoted(word: str) -> str:
    if has_control(word):
        raise ValueError(f"a word of a job must not have control characters, got {word!r}")
    return shlex.quote(word)


def _sbatch_value(text: str) -> str:
    """As sbatch reads it: quoted by double quotes, in which a backslash guards the next character."""
    if not text or has_control(text):
        raise ValueError(f"names and paths of a job must be one line of text, got {text!r}")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


__all__ = ["render_array", "render_job", "task_line"]
