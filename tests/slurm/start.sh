#!/usr/bin/env bash
# Starts a Slurm cluster of this one machine, for tests: all its files stand in one folder.
#
#   tests/slurm/start.sh DIR        # then: export SLURM_CONF=DIR/slurm.conf
#   tests/slurm/stop.sh DIR
#
# Needs root, and of Debian the packages slurm-wlm and munge.
set -euo pipefail
dir=$1
host=$(hostname -s)
mkdir -p "$dir/state" "$dir/spool"
# Munge wants its key to be nobody else's business.
chmod 755 "$dir"
head -c 1024 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
munged --socket "$dir/munge.socket" --key-file "$dir/munge.key" --pid-file "$dir/munged.pid" \
  --log-file "$dir/munged.log" --seed-file "$dir/munge.seed" --force

# Two processors whatever the machine has, so that two tasks always run. No cgroups: a container
# may have none. Slurm repeats a message that is not answered in time, and a repeated signal would
# reach the next start of a job.
cat >"$dir/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
SchedulerParameters=sched_interval=1
KillWait=60
MessageTimeout=100
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=tests Nodes=$host Default=YES State=UP
END
export SLURM_CONF=$dir/slurm.conf
slurmctld
slurmd
for ((second = 0; second < 30; second++)); do
  [[ $(sinfo --noheader --format %t 2>/dev/null) != idle ]] || exit 0
  sleep 1
done
echo "tests/slurm/start.sh: the node is not idle after 30 seconds; see $dir/*.log" >&2
exit 1
