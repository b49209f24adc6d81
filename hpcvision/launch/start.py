"""What `hpcvision train` and `hpcvision submit` do: check, make the folder, start, and say where everything is."""

import sys
from pathlib import Path

from rich.console import Console

from hpcvision.config import RunConfig
from hpcvision.errors import UserError
from hpcvision.launch.job import TrainJob, draw_pictures, only_one, prepare
from hpcvision.launch.local import choose_processes, run_processes
from hpcvision.launch.submit import follow, gpus_here, submit
from hpcvision.rundir import RunDir, runs_folder


def train_here(config: RunConfig, runs: Path | None, *, processes: int | None, fresh: bool) -> int:
    """Train on this machine, or as one rank under srun; the exit code."""
    from hpcvision.distributed import Place

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
    processes = processes or gpus_here() or choose_processes(config)
    config.train.local_batch_size(processes)  # an uneven split is refused before anything is started
    rundir = prepare(config, runs_folder(runs), fresh=fresh)
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
    config: RunConfig, runs: Path | None, *, cluster: str, processes: int | None, wait: bool, fresh: bool
) -> None:
    """Submit through submitit and say where the run and its log are; with wait=True stay until it ends."""
    from hpcvision.launch.profile import load_profile

    profile = load_profile(cluster)
    # What this machine has says something about the run only when the run stays here.
    chosen = gpus_here() or choose_processes(config) if profile.executor == "local" else 1
    processes = processes or profile.gpus_per_node or chosen
    config.train.local_batch_size(processes)  # an uneven split is refused before anything is started
    rundir = prepare(config, runs_folder(runs), fresh=fresh)
    if rundir.is_finished:
        say_where(rundir)
        return
    with only_one(rundir):
        pass
    job = submit(rundir, profile, processes=processes)
    print(f"submitted {rundir.folder.name} as job {job.job_id} on {cluster}")
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

    console = Console(soft_wrap=True, highlight=False)
    if not rundir.is_finished:
        return
    if not rundir.training_graph.exists():  # killed after the last step, while drawing
        draw_pictures(rundir)
    console.print(f"finished: {scores_in_words(read_summary(rundir.results))}")
    for path in (rundir.results, rundir.training_graph, rundir.samples_picture):
        if path.exists():
            console.print(f"  {path}")
    sys.stdout.flush()
