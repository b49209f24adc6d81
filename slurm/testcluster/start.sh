#!/bin/bash
# A real Slurm on this machine that looks like two hosts and a login node, to try everything on that a cluster does:
#
#   sudo slurm/testcluster/start.sh [--no-accounting]      (or: sudo make slurm-up)
#   sudo slurm/testcluster/login.sh sinfo
#   sudo slurm/testcluster/stop.sh                         (or: sudo make slurm-down)
#
# Needs Debian's packages (it names those that are missing), root, and no systemd. Each host has its own network, host
# name, processes, /tmp and /dev/shm; what both see is the rest of the disk. Started again, it starts only what is not
# running. --no-accounting: no slurmdbd, so that sacct and sacctmgr fail, as on some sites.
set -euo pipefail
. "$(dirname "$0")/common.sh"

accounting=1
case "${1:-}" in
    "") ;;
    --no-accounting) accounting=0 ;;
    *) echo "start.sh: unknown option $1; the only one is --no-accounting" >&2; exit 2 ;;
esac

missing=()
for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge ip:iproute2 tini:tini \
    unshare:util-linux runuser:util-linux slurmdbd:slurmdbd mariadbd:mariadb-server; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [[ ${#missing[@]} -gt 0 ]]; then
    echo "start.sh: missing packages; install them with: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi
if [[ $EUID -ne 0 ]]; then
    echo "start.sh: network namespaces take root; use sudo make slurm-up" >&2
    exit 1
fi

conf=$CLUSTER_FOLDER/slurm.conf
export SLURM_CONF=$conf
if [[ -e $conf && $(cat "$CLUSTER_FOLDER/accounting") != "$accounting" ]]; then
    "$(dirname "$0")/stop.sh"
fi
if [[ -e $CLUSTER_FOLDER ]] && ! is_ours; then
    echo "start.sh: $CLUSTER_FOLDER exists and is not the test cluster's; see HPCVISION_TESTCLUSTER" >&2
    exit 1
fi
mkdir -p "$CLUSTER_FOLDER"/{state,home,keep,logs}
touch "$CLUSTER_FOLDER/.hpcvision-testcluster"
forget_processes_of_another_boot
cat /proc/sys/kernel/random/boot_id >"$CLUSTER_FOLDER/boot"
chmod 755 "$CLUSTER_FOLDER"
echo "$accounting" >"$CLUSTER_FOLDER/accounting"
logs=$CLUSTER_FOLDER/logs

# Starts "$@" in the background as the daemon $1, unless it runs; its number goes into $1.pid, its words into logs/.
start() {
    local name=$1
    shift
    running "$CLUSTER_FOLDER/$name.pid" && return
    setsid "$@" >>"$logs/$name.log" 2>&1 </dev/null &
    echo $! >"$CLUSTER_FOLDER/$name.pid"
}

# Waits until "${@:3}" succeeds, at most $1 seconds; $2 says what is awaited.
await() {
    local seconds=$1 what=$2 began=$SECONDS
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS - began > seconds)); then
            echo "start.sh: $what did not come up within $seconds s; see $logs" >&2
            tail -n 5 "$logs"/*.log >&2
            exit 1
        fi
        sleep 0.2
    done
}

# The user who submits: root would escape some limits.
if ! id -u "$CLUSTER_USER" >/dev/null 2>&1; then
    useradd --no-create-home --home-dir "$CLUSTER_FOLDER/home" --shell /bin/bash "$CLUSTER_USER"
    touch "$CLUSTER_FOLDER/user-added"
fi
if [[ ! -e $CLUSTER_FOLDER/home/.gitconfig ]]; then
    printf '[safe]\n\tdirectory = *\n' >"$CLUSTER_FOLDER/home/.gitconfig"
fi
chown -R "$CLUSTER_USER:" "$CLUSTER_FOLDER/home"

# The network: a bridge, the login node on it, and a cable to each host.
{
    echo "127.0.0.1 localhost"
    echo "$LOGIN_ADDRESS login"
    for name in "${NODES[@]}"; do echo "$(node_address "$name") $name"; done
} >"$CLUSTER_FOLDER/hosts"
if ! ip link show "$BRIDGE" >/dev/null 2>&1; then
    ip link add "$BRIDGE" type bridge
    ip addr add "$LOGIN_ADDRESS/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
fi
for name in "${NODES[@]}"; do
    if ! ip link show "hv-$name" >/dev/null 2>&1; then
        ip netns add "hv-$name"
        ip link add "hv-$name" type veth peer name eth0 netns "hv-$name"
        ip -n "hv-$name" addr add "$(node_address "$name")/24" dev eth0
        ip -n "hv-$name" link set eth0 up
        ip link set "hv-$name" master "$BRIDGE"
    fi
    ip link set "hv-$name" up
done

# Who is who.
if [[ ! -e $CLUSTER_FOLDER/munge.key ]]; then
    (umask 077; head -c 128 /dev/urandom >"$CLUSTER_FOLDER/munge.key")
fi
start munged munged --foreground --force --socket="$CLUSTER_FOLDER/munge.socket" \
    --key-file="$CLUSTER_FOLDER/munge.key" --log-file="$logs/munge.log" \
    --pid-file="$CLUSTER_FOLDER/munged.own.pid" --seed-file="$CLUSTER_FOLDER/munge.seed"
await 20 munged munge --socket="$CLUSTER_FOLDER/munge.socket" --no-input

if [[ $accounting == 1 ]]; then
    storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$CLUSTER_FOLDER/munge.socket
AccountingStorageEnforce=associations,limits,qos"
    databases=$CLUSTER_FOLDER/mariadb
    if [[ ! -d $databases ]]; then
        mkdir "$databases"
        chown mysql: "$databases"
        mariadb-install-db --no-defaults --user=mysql --datadir="$databases" --skip-test-db >"$logs/install-db.log" 2>&1
    fi
    start mariadbd mariadbd --no-defaults --user=mysql --datadir="$databases" --socket="$databases/socket" \
        --bind-address=127.0.0.1 --port=16820 --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0
    await 60 mariadbd mariadb --no-defaults --socket="$databases/socket" -e "select 1"
    mariadb --no-defaults --socket="$databases/socket" -e "create user if not exists slurm@'127.0.0.1' identified by \
'slurm'; create user if not exists slurm@localhost identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'; \
grant all on slurm.* to slurm@localhost;"
    cat >"$CLUSTER_FOLDER/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$CLUSTER_FOLDER/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
PidFile=$CLUSTER_FOLDER/slurmdbd.own.pid
LogFile=$logs/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16820
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
END
    chmod 600 "$CLUSTER_FOLDER/slurmdbd.conf"
else
    storage="AccountingStorageType=accounting_storage/none"
fi

cat >"$conf" <<END
ClusterName=hpcvision
SlurmctldHost=login($LOGIN_ADDRESS)
AuthType=auth/munge
# A requeued job waits until its old credential has expired, otherwise two minutes.
AuthInfo=socket=$CLUSTER_FOLDER/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$CLUSTER_FOLDER/state
SlurmdSpoolDir=$CLUSTER_FOLDER/spool-%n
SlurmctldPidFile=$CLUSTER_FOLDER/slurmctld.own.pid
SlurmdPidFile=$CLUSTER_FOLDER/slurmd-%n.pid
SlurmctldLogFile=$logs/slurmctld.log
SlurmdLogFile=$logs/slurmd-%n.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
GresTypes=gpu
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=20
KillWait=5
MaxArraySize=11
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
$storage
NodeName=node0 NodeAddr=$(node_address node0) CPUs=4 RealMemory=8000 Gres=gpu:tesla:2 State=UNKNOWN
NodeName=node1 NodeAddr=$(node_address node1) CPUs=4 RealMemory=8000 Gres=gpu:tesla:2 State=UNKNOWN
PartitionName=test Nodes=ALL MaxTime=1 DefaultTime=1 AllowAccounts=students Default=YES
PartitionName=gpu Nodes=ALL MaxTime=1440 DefaultTime=10 AllowAccounts=students PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=1440 DefaultTime=10 AllowAccounts=students PriorityTier=10 PreemptMode=OFF
END
if [[ $accounting == 0 ]]; then
    sed -i 's/ AllowAccounts=students//' "$conf"  # nobody knows who belongs to which
fi
{
    for name in "${NODES[@]}"; do
        for number in 0 1; do
            : >"$CLUSTER_FOLDER/gpu$number"
            echo "NodeName=$name Name=gpu Type=tesla File=$CLUSTER_FOLDER/gpu$number"
        done
    done
} >"$CLUSTER_FOLDER/gres.conf"
chmod 666 "$CLUSTER_FOLDER"/gpu[01]

if [[ $accounting == 1 ]]; then
    # slurmdbd takes the folder of its settings from SLURM_CONF.
    start slurmdbd slurmdbd -D
    await 60 slurmdbd sacctmgr -n list cluster
    if [[ -z $(sacctmgr -nP list user "$CLUSTER_USER" format=user) ]]; then
        # The user's own account is allowed nowhere: jobs have to name the right one.
        {
            sacctmgr -i add cluster hpcvision || true
            sacctmgr -i modify qos normal set MaxSubmitJobsPerUser=30
            sacctmgr -i add qos long
            sacctmgr -i add account guests,students
            sacctmgr -i add user "$CLUSTER_USER" account=guests
            sacctmgr -i add user "$CLUSTER_USER" account=students qos=normal,long
        } >"$logs/sacctmgr.log" 2>&1
    fi
fi
start slurmctld unshare --uts -- bash -c 'hostname login; exec slurmctld -D'
await 60 slurmctld sinfo
for name in "${NODES[@]}"; do
    start "$name" nsenter --net="/run/netns/hv-$name" unshare --mount --uts --pid --fork --kill-child --mount-proc -- \
        tini -s -- "$(dirname "$0")/node.sh" "$name"
done
both_idle() { [[ $(sinfo -h -N -p test -o %t | grep -cE '^(idle|mix|alloc)$') == "${#NODES[@]}" ]]; }
for name in "${NODES[@]}"; do
    scontrol update nodename="$name" state=resume 2>/dev/null || true
done
await 60 "the hosts" both_idle
echo "the test cluster runs: $(sinfo -h -o '%P %D nodes' | tr '\n' ';') enter it with slurm/testcluster/login.sh"
