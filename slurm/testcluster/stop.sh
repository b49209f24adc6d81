#!/bin/bash
# Stops the test cluster and leaves nothing of it behind: no process, network, user or file.
set -euo pipefail
. "$(dirname "$0")/common.sh"

if [[ $EUID -ne 0 ]]; then
    echo "stop.sh: the test cluster takes root; use sudo make slurm-down" >&2
    exit 1
fi

if [[ ! -e $CLUSTER_FOLDER ]]; then exit 0; fi
if ! is_ours; then
    echo "stop.sh: $CLUSTER_FOLDER was not made by start.sh; see HPCVISION_TESTCLUSTER" >&2
    exit 1
fi
forget_processes_of_another_boot
# The first process of a host's process namespace; with it go all others of that host.
for name in "${NODES[@]}"; do
    running "$CLUSTER_FOLDER/$name.pid" && pkill -KILL -P "$(cat "$CLUSTER_FOLDER/$name.pid")" 2>/dev/null || true
done
for daemon in slurmctld slurmdbd mariadbd munged; do
    running "$CLUSTER_FOLDER/$daemon.pid" && kill "$(cat "$CLUSTER_FOLDER/$daemon.pid")" || true
done
for _ in $(seq 100); do
    left=0
    for daemon in slurmctld slurmdbd mariadbd munged; do
        running "$CLUSTER_FOLDER/$daemon.pid" && left=1
    done
    [[ $left == 0 ]] && break
    sleep 0.1
done
for daemon in slurmctld slurmdbd mariadbd munged; do
    running "$CLUSTER_FOLDER/$daemon.pid" && kill -KILL "$(cat "$CLUSTER_FOLDER/$daemon.pid")" || true
done
for name in "${NODES[@]}"; do
    ip link del "hv-$name" 2>/dev/null || true
    ip netns del "hv-$name" 2>/dev/null || true
done
ip link del "$BRIDGE" 2>/dev/null || true
if [[ -e $CLUSTER_FOLDER/user-added ]]; then
    pkill -KILL -u "$CLUSTER_USER" || true
    sleep 0.2
    userdel "$CLUSTER_USER"
fi
rm -rf "$CLUSTER_FOLDER"
