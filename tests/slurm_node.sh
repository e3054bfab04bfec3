#!/usr/bin/env bash
# A real Slurm of one node, this machine, for tests/test_slurm.py: as root, on Debian or Ubuntu, without systemd.
# Partition low may be preempted by high, and its jobs are put back; accounting is on, which submitit asks.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
packages=(slurm-wlm munge slurmdbd mariadb-server)
dpkg -s "${packages[@]}" >/dev/null 2>&1 || { apt-get update -qq; apt-get install -y -qq --no-install-recommends "${packages[@]}"; }

host=$(hostname -s)
until_ready() { for _ in $(seq 120); do "$@" >/dev/null 2>&1 && return; sleep 0.5; done; echo "not ready: $*" >&2; exit 1; }

install -d -o munge -g munge -m 0755 /run/munge /var/log/munge
install -d -o munge -g munge -m 0711 /var/lib/munge
[ -s /etc/munge/munge.key ] || dd if=/dev/urandom bs=1 count=1024 status=none of=/etc/munge/munge.key
chown munge:munge /etc/munge/munge.key
chmod 400 /etc/munge/munge.key
pgrep -x munged >/dev/null || setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged >/dev/null 2>&1

mkdir -p /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /run/slurm /etc/slurm
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=ci
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmdSpoolDir=/var/spool/slurmd
StateSaveLocation=/var/spool/slurmctld
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
KillWait=15
SlurmdTimeout=10
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=$host Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
cat >/etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurm/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
chmod 600 /etc/slurm/slurmdbd.conf

install -d -o mysql -g mysql /run/mysqld
pgrep -x mariadbd >/dev/null || setsid mariadbd-safe --user=mysql --bind-address=127.0.0.1 >/dev/null 2>&1 &
until_ready mysqladmin ping
mysql -e "create database if not exists slurm_acct_db; create user if not exists slurm@localhost identified by 'slurm';
    grant all on slurm_acct_db.* to slurm@localhost"
pgrep -x slurmdbd >/dev/null || slurmdbd >/dev/null 2>&1
until_ready sacctmgr -n list cluster
sacctmgr -i add cluster ci >/dev/null 2>&1 || true
pgrep -x slurmctld >/dev/null || slurmctld >/dev/null 2>&1
pgrep -x slurmd >/dev/null || slurmd >/dev/null 2>&1
until_ready bash -c 'sinfo -h -o %t | grep -qE "idle|mix|alloc"'
sinfo
