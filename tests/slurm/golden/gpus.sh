#!/bin/bash
#SBATCH --job-name="first run"
#SBATCH --chdir=/home/me
#SBATCH --output="/data/runs/first run/slurm/%j.log"
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --mem=240G
#SBATCH --time=12:00:00
#SBATCH --partition=gpu
#SBATCH --account=imaging
#SBATCH --qos=high
#SBATCH --constraint=a100|h100
#SBATCH --mail-user=me@example.org
#SBATCH --mail-type=END,FAIL
#SBATCH --signal=USR1@180
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --exclusive

# What runs, and the folder of its record.
run='/data/runs/first run'
command=(clip_med pretrain 'my config.yaml' --run '/data/runs/first run')
mkdir -p "$run/slurm"
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}"
max_crashes=3
crash_backoff_s=30

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

note start 0
# A request that an earlier start has answered.
rm -f "$run/requeue.json"

# Signals that announce preemption or the time limit are for the ranks; this shell waits for them.
trap : TERM USR1 USR2

set -e
module load cuda
export OMP_NUM_THREADS=12
export MASTER_ADDR="$SLURMD_NODENAME"
export NCCL_SOCKET_IFNAME=ib0
export NOTE='two words'

# Where the ranks meet: this node, at a port that follows from the job's number, below those that Linux gives to
# outgoing connections; the next one where it is taken.
port=$((20000 + 10 * SLURM_JOB_ID % 10000))
while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done
export MASTER_PORT="$port"

code=0
srun --kill-on-bad-exit=1 --cpus-per-task=12 bash -c 'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS" exec "$@"' rank /shared/env/bin/python -m "${command[@]}" || code=$?
set +e
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
