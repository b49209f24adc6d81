"""Which process of a run this is. Imports no torch: whoever starts others need not wait for it."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Which process this is among those of the same run, as told by whoever started it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node_count: int = 1
    job_id: str = "local"
    restart: int = 0
    is_slurm_task: bool = False
    """Started by srun, so that Slurm's numbers for a task are this process's."""

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> "Place":
        """Read from hpcvision's own launcher, submitit's local executor, or srun; else a world of one."""
        env = os.environ if environment is None else environment
        if "HPCVISION_RANK" in env:
            return Place(
                rank=int(env["HPCVISION_RANK"]),
                world_size=int(env["HPCVISION_WORLD_SIZE"]),
                local_rank=int(env["HPCVISION_RANK"]),
                job_id=env["HPCVISION_JOB_ID"],
            )
        if env.get("SUBMITIT_EXECUTOR") == "local":
            return Place(
                rank=int(env["SUBMITIT_LOCAL_GLOBALID"]),
                world_size=int(env["SUBMITIT_LOCAL_NTASKS"]),
                local_rank=int(env["SUBMITIT_LOCAL_LOCALID"]),
                job_id=f"submitit-{env['SUBMITIT_LOCAL_JOB_ID']}",
            )
        if "SLURM_STEP_ID" in env:
            return Place(
                rank=int(env["SLURM_PROCID"]),
                world_size=int(env["SLURM_STEP_NUM_TASKS"]),
                local_rank=int(env["SLURM_LOCALID"]),
                node_count=int(env.get("SLURM_STEP_NUM_NODES", "1")),
                job_id=f"slurm-{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}",
                restart=int(env.get("SLURM_RESTART_COUNT", "0")),
                is_slurm_task=True,
            )
        if int(env.get("SLURM_NTASKS", "1")) > 1:
            warnings.warn(
                f"Slurm gave {env['SLURM_NTASKS']} tasks but only this one was started; put srun before the command",
                stacklevel=2,
            )
        return Place()
