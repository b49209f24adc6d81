"""Sweeps: `fill_cap` and `asha` are what a sweep's file may use besides Ray Tune's distributions."""

import os
import secrets

from hpcvision.sweep.words import asha, fill_cap

__all__ = ["asha", "fill_cap"]

# Ray reads these once, when it is imported, which every file of this package and every sweep's file may be the first
# to do.
os.environ |= {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables would stand between our lines
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # otherwise trials do not find data/ beside the user
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # matches every line: a lost node would print a hundred of its state
    "RAY_AUTH_MODE": "token",  # every user of a shared node can reach its ports
    "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
    # Ray would kill trials when others fill the node's memory; the job's own limit is the one that counts.
    "RAY_memory_monitor_refresh_ms": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep stops its trials itself, so that they save
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run writes its own TensorBoard files
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nothing of Tune's is ever restored
}
