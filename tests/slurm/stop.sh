#!/usr/bin/env bash
# Stops what tests/slurm/start.sh DIR started, jobs included, and waits until it is gone.
set -euo pipefail
export SLURM_CONF=$1/slurm.conf
daemons=$(cat "$1"/*.pid)
scancel --signal=KILL --full --user root || true
scontrol shutdown || true
kill "$(cat "$1/munged.pid")"
for daemon in $daemons; do
  # A daemon that nobody waits for stays in the table of processes, as a zombie.
  while grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$daemon/status"; do sleep 0.1; done
done
