"""What `hpcvision train` and `hpcvision submit` do: check, make the folder, start, and say where everything is."""

import sys
from pathlib import Path
from typing import Any

from hpcvision.config import RunConfig
from hpcvision.errors import UserError
from hpcvision.launch.job import TrainJob, draw_pictures, prepare
from hpcvision.launch.local import choose_processes, run_processes
from hpcvision.launch.lock import only_one
from hpcvision.launch.profile import Profile
from hpcvision.launch.submit import follow, gpus_here, submit_here
from hpcvision.place import Place
from hpcvision.provenance import trained_by_other_code
from hpcvision.rundir import RunDir, read_journal, runs_folder


def train_here(config: RunConfig, runs: Path | None, *, processes: int | None, fresh: bool) -> int:
    """Train on this machine, or as one rank under srun; the exit code."""
    place = Place.from_environment()
    if place.world_size > 1:
        if fresh:
            raise UserError("--fresh cannot be used under srun with several tasks; rename the old folder by hand")
        config.train.local_batch_size(place.world_size)
        rundir = prepare(config, runs_folder(runs))
        TrainJob(str(rundir.folder))()
        if place.rank == 0:
            say_where(rundir)
        return 0
    # The only task of a Slurm job is its only process, unless told otherwise.
    processes = processes or (1 if place.is_slurm_task else choose_processes(config, gpus_here()))
    config.train.local_batch_size(processes)  # an uneven split is refused before anything is started
    # A job that Slurm has queued again runs the same words, and goes on with what it began afresh.
    rundir = prepare(config, runs_folder(runs), fresh=fresh and not place.restart)
    if not rundir.is_finished:
        if processes == 1:
            TrainJob(str(rundir.folder))()
        else:
            with only_one(rundir):  # told here at once, not by a rank that the others then wait for
                pass
            run_processes(rundir, processes)
    say_where(rundir)
    return 0


def submit_job(
    configs: list[RunConfig],
    runs: Path,
    profile: Profile,
    *,
    processes: int | None,
    wait: bool,
    fresh: bool,
    **cluster_options: Any,
) -> None:
    """Submit through submitit and say where the runs and their logs are; with wait=True stay until they end."""
    if profile.executor == "slurm":
        from hpcvision.launch.cluster import submit_to_cluster

        submitted = submit_to_cluster(configs, runs, profile=profile, fresh=fresh, **cluster_options)
        if wait:
            from hpcvision.launch.watch import wait_for

            wait_for(submitted)
        return
    left = sum(fresh or not RunDir(runs / config.folder_name).is_finished for config in configs)
    if left > 1 and not wait:
        raise UserError(
            f"{left} runs would all train at once on this machine; give --wait, which trains one after the "
            "other, or --cluster"
        )
    for config in configs:
        chosen = processes or choose_processes(config, gpus_here())
        config.train.local_batch_size(chosen)  # an uneven split is refused before anything is started
        rundir = prepare(config, runs, fresh=fresh)
        if rundir.is_finished:
            say_where(rundir)
            continue
        with only_one(rundir):
            pass
        job = submit_here(rundir, profile, processes=chosen)
        print(f"submitted {rundir.folder.name} as job {job.job_id} on this machine")
        print(f"log: {job.paths.stdout}")
        if wait:
            try:
                follow(job, rundir)
            except KeyboardInterrupt:
                print("\nthe run goes on in the background; the same command shows the result when it is finished")
                sys.exit(130)
            say_where(rundir)


def say_where(rundir: RunDir) -> None:
    """The folder, the archive, the picture, and the scores of a run that is finished."""
    from hpcvision.report.tables import scores_in_words
    from hpcvision.results.reader import read_summary

    if not rundir.is_finished:
        return
    if not rundir.training_graph.exists():  # killed after the last step, while drawing
        draw_pictures(rundir)
    print(f"finished: {scores_in_words(read_summary(rundir.results))}")
    if other := trained_by_other_code(read_journal(rundir.log)):
        print(f"  trained by {other}; --fresh trains again")
    for path in (rundir.results, rundir.training_graph, rundir.samples_picture):
        if path.exists():
            print(f"  {path}")
    sys.stdout.flush()
