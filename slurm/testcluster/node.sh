#!/bin/bash
# One host of the test cluster; start.sh runs it inside the host's own network, mount, process and name spaces.
set -euo pipefail
. "$(dirname "$0")/common.sh"
name=$1

hostname "$name"
ip link set lo up
COVER_MODE=1777 cover /tmp "$CHECKOUT"
COVER_MODE=1777 cover /dev/shm
open_paths
mkdir -p "$CLUSTER_FOLDER/spool-$name"
exec slurmd -D -N "$name" -f "$CLUSTER_FOLDER/slurm.conf"
