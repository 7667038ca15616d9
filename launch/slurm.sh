#!/usr/bin/env bash
# Trains on Slurm, one process per task, and requeues the job when it is preempted or killed.
#
#   sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-task 1 --time 24:00:00 \
#       launch/slurm.sh --config configs/X.py --workdir DIR
#
# `launch/slurm.sh --dry-run --config ...` prints what the job would do. Options of sbatch
# come before the script. PYTHON is the interpreter, KDJAX_RESTARTS the largest number of requeues.
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

# In the background: if Slurm itself preempts the job, the tasks already have the signal, and scancel
# tries for a minute to change a job that is locked.
scancel=''
trap 'scancel --signal=TERM "$SLURM_JOB_ID" & scancel=$!' TERM
"${command[@]}" &
step=$!

# A trapped signal ends `wait`. The tasks are then still saving.
ended() {
  status=0
  wait "$step" || status=$?
  ! kill -0 "$step" 2>/dev/null
}
until ended; do :; done
# A late signal would reach the job's next start.
[[ -z $scancel ]] || kill "$scancel" 2>/dev/null || true

if ((status == 75 || status > 128)) && ((${SLURM_RESTART_COUNT:-0} < 10#$restarts)); then
  echo "launch/slurm.sh: status $status, requeued after ${SLURM_RESTART_COUNT:-0} restarts"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
