#!/usr/bin/env bash
# Trains on Slurm, one process a task, and requeues itself when it is preempted or killed.
#
#   sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-task 1 --time 24:00:00 \
#       launch/slurm.sh --config configs/X.py --workdir DIR
#
# `launch/slurm.sh --dry-run --config ...` prints what the job would do. Options of sbatch stand
# before the script. PYTHON names the interpreter, KDJAX_RESTARTS how often a job may be requeued.
#
#SBATCH --job-name=kdjax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time limit, to this shell alone.
#SBATCH --signal=B:TERM@120
set -euo pipefail

dry_run=''
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
if (($# == 0)); then
  echo "usage: sbatch [options of sbatch] launch/slurm.sh --config configs/X.py --workdir DIR" >&2
  exit 2
fi
restarts=${KDJAX_RESTARTS:-100}
if [[ ! $restarts =~ ^[0-9]{1,9}$ ]]; then
  echo "launch/slurm.sh: KDJAX_RESTARTS is '$restarts'; give a whole number, 0 or more" >&2
  exit 2
fi
# One failing task ends the others, so that none waits for it.
command=(srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m kdjax train "$@")

if [[ $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
  echo "# on SIGTERM: scancel --signal=TERM JOB, so that every task saves"
  echo "# on status 75 or a signal: scontrol requeue JOB, at most $restarts times"
  exit
fi

# Not waited for: where Slurm itself preempts, the tasks have the signal already, and scancel tries
# for a minute to send it to a job that cannot be altered just then.
scancel=''
trap 'scancel --signal=TERM "$SLURM_JOB_ID" & scancel=$!' TERM
"${command[@]}" &
step=$!

# A trapped signal ends `wait`; the tasks are then still saving.
ended() {
  status=0
  wait "$step" || status=$?
  ! kill -0 "$step" 2>/dev/null
}
until ended; do :; done
# What it would still reach is the job's next start.
[[ -z $scancel ]] || kill "$scancel" 2>/dev/null || true

if ((status == 75 || status > 128)) && ((${SLURM_RESTART_COUNT:-0} < 10#$restarts)); then
  echo "launch/slurm.sh: status $status, requeued after ${SLURM_RESTART_COUNT:-0} restarts"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
