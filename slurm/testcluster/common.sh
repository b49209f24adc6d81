# What the scripts of the test cluster share: names, addresses, and what a host of it sees of the machine's files.

CLUSTER_FOLDER=${HPCVISION_TESTCLUSTER:-/var/lib/hpcvision-testcluster}  # not in /tmp: every host has its own
CLUSTER_USER=hpcuser
NODES=(node0 node1)
NETWORK=10.77.0
LOGIN_ADDRESS=$NETWORK.1
BRIDGE=hv-bridge
CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

# Whether the folder is one that start.sh made; anything else is left alone.
is_ours() { [[ -e $CLUSTER_FOLDER/.hpcvision-testcluster ]]; }

# After a restart of the machine the numbers of processes in *.pid belong to others.
forget_processes_of_another_boot() {
    [[ $(cat "$CLUSTER_FOLDER/boot" 2>/dev/null) == "$(cat /proc/sys/kernel/random/boot_id)" ]] || rm -f "$CLUSTER_FOLDER"/*.pid
}

node_address() { echo "$NETWORK.$((11 + ${1#node}))"; }

# True when the process whose number is in the file is there.
running() { [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null; }

# Inside a private mount namespace: mount a new folder with its own content over $1, but keep the paths $2 ... visible.
cover() {
    local over=$1 kept=() path number=0
    shift
    for path in "$@"; do
        [[ $path == "$over"/* ]] || continue
        mkdir -p "$CLUSTER_FOLDER/keep/$number"
        mount --bind "$path" "$CLUSTER_FOLDER/keep/$number"
        kept+=("$path")
        number=$((number + 1))
    done
    mount -t tmpfs -o "mode=$COVER_MODE" tmpfs "$over"
    for number in "${!kept[@]}"; do
        mkdir -p "${kept[$number]}"
        mount --bind "$CLUSTER_FOLDER/keep/$number" "${kept[$number]}"
    done
}

# Inside a private mount namespace: let the cluster's user reach the checkout and its Python, wherever they are, and see
# the cluster's host names. Nothing changes for the rest of the machine.
open_paths() {
    local needed=("$CHECKOUT") python path parent
    if python=$(readlink -f "$CHECKOUT/.venv/bin/python") && [[ -e $python ]]; then
        needed+=("$(dirname "$(dirname "$python")")")
    fi
    for path in "${needed[@]}"; do
        parent=$path
        while parent=$(dirname "$parent") && [[ $parent != / ]]; do
            if ! runuser -u "$CLUSTER_USER" -- test -x "$parent"; then
                COVER_MODE=755 cover "$parent" "${needed[@]}"
            fi
        done
    done
    mount --bind "$CLUSTER_FOLDER/hosts" /etc/hosts
}
