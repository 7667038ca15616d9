#!/usr/bin/env bash
# Stops what tests/slurm/start.sh DIR started, jobs included.
set -euo pipefail
export SLURM_CONF=$1/slurm.conf
scancel --signal=KILL --full --user root || true
scontrol shutdown || true
kill "$(cat "$1/munged.pid")"
