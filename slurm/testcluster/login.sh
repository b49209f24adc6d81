#!/bin/bash
# Runs a command as the test cluster's user on its login node; without a command, a shell:
#
#   slurm/testcluster/login.sh hpcvision doctor --cluster testcluster
#
# It runs in the user's home, or where it is called from below that. Becoming the user takes root.
set -euo pipefail
. "$(dirname "$0")/common.sh"

if [[ ${1:-} != --inside ]]; then
    if [[ $EUID -ne 0 ]]; then
        echo "login.sh: becoming $CLUSTER_USER takes root; use sudo $0" >&2
        exit 1
    fi
    if [[ ! -e $CLUSTER_FOLDER/slurm.conf ]]; then
        echo "login.sh: the test cluster is not running; start it with make slurm-up" >&2
        exit 1
    fi
    exec unshare --mount --uts -- "$0" --inside "$@"
fi
shift
folder=$PWD
hostname login
open_paths
home=$CLUSTER_FOLDER/home
[[ $folder == "$CLUSTER_FOLDER"/* ]] || cd "$home"
exec setpriv --reuid "$CLUSTER_USER" --regid "$CLUSTER_USER" --init-groups -- env -u HISTFILE -u XDG_CACHE_HOME \
    HOME="$home" USER="$CLUSTER_USER" LOGNAME="$CLUSTER_USER" SLURM_CONF="$CLUSTER_FOLDER/slurm.conf" \
    PATH="$CHECKOUT/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" "${@:-bash}"
