"""The sub-commands about a cluster: submit, script, status, logs, cancel, resume."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcvision.errors import UserError
from hpcvision.importing import collector_off

if TYPE_CHECKING:
    from hpcvision.config import RunConfig
    from hpcvision.rundir import RunDir

Job = Annotated[str, typer.Argument(help="Name of a job (see `hpcvision jobs`) or path of a job file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the job, such as optim.learning_rate=3e-4.", metavar="KEY=VALUE")
]
Runs = Annotated[Path | None, typer.Option("--runs", help="Folder of all runs (default: $HPCVISION_RUNS or runs/).")]
Fresh = Annotated[
    bool, typer.Option("--fresh/--resume", help="Set an earlier run aside and start again, or go on with it.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Processes on every node (default: one per GPU, or 1; with local, per core).")
]
Cluster = Annotated[str, typer.Option(help="Cluster profile: a name in slurm/profiles or a .toml file.")]
Nodes = Annotated[int | None, typer.Option(min=1, help="Slurm: nodes of the job (default: the profile's).")]
Gpus = Annotated[
    int | None, typer.Option("--gpus-per-node", min=0, help="Slurm: GPUs a node (default: the profile's).")
]
Minutes = Annotated[int | None, typer.Option(min=1, help="Slurm: time limit of a stay (default: the profile's).")]
Wanted = Annotated[
    str | None, typer.Argument(metavar="RUN", help="Part of a run's name or fingerprint (default: all).")
]


def configured(job: str, overrides: list[str] | None) -> "RunConfig":
    """The job's configuration with the overrides in it."""
    from hpcvision.config import apply, parse
    from hpcvision.config.catalogue import load_job

    return apply(load_job(job), parse(overrides or []))


def submit(
    job: Job,
    overrides: Overrides = None,
    cluster: Cluster = "local",
    processes: Processes = None,
    nodes: Nodes = None,
    gpus_per_node: Gpus = None,
    minutes: Minutes = None,
    seeds: Annotated[str | None, typer.Option(help="A run for every seed, such as 0-4 or 0,3,8-9.")] = None,
    runs_per_job: Annotated[
        int | None, typer.Option(min=1, help="Slurm: runs that share a job, one after the other.")
    ] = None,
    after: Annotated[str | None, typer.Option(help="Slurm: id of a job that has to end first.")] = None,
    chain: Annotated[
        int, typer.Option(min=1, help="Slurm: so many jobs one after the other, where a job may not requeue itself.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Slurm: show the script and when it would start.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Slurm: also runs that are in the queue, after that.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show the log and stay until the run ends.")] = False,
    fresh: Fresh = False,
    runs: Runs = None,
) -> None:
    """Hand a job to a cluster, or to this machine in the background, through submitit.

    Example: hpcvision submit addnist_cnn --cluster generic --seeds 0-4 --minutes 60
    """
    with collector_off():
        from hpcvision.launch.ahead import ask_ahead
        from hpcvision.launch.profile import load_profile

        profile = load_profile(cluster)
        if profile.executor == "slurm":
            ask_ahead(profile)
        from hpcvision.launch.cluster import only_on_clusters, placed, with_seeds
        from hpcvision.launch.start import submit_job
        from hpcvision.rundir import runs_folder

        configs = with_seeds(configured(job, overrides), seeds)
    options = {}
    if profile.executor == "local":
        only_on_clusters(
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            minutes=minutes,
            runs_per_job=runs_per_job,
            after=after,
            chain=None if chain == 1 else chain,
            dry_run=dry_run or None,
            again=again or None,
        )
    else:
        place = placed(profile, nodes=nodes, gpus_per_node=gpus_per_node, processes=processes, minutes=minutes)
        options = {
            "cluster": cluster,
            "place": place,
            "after": after,
            "chain": chain,
            "runs_per_job": runs_per_job,
            "dry_run": dry_run,
            "again": again,
        }
    submit_job(configs, runs_folder(runs), profile, processes=processes, wait=wait, fresh=fresh, **options)


def script(
    job: Job,
    overrides: Overrides = None,
    cluster: Cluster = "generic",
    processes: Processes = None,
    nodes: Nodes = None,
    gpus_per_node: Gpus = None,
    minutes: Minutes = None,
    runs: Runs = None,
) -> None:
    """Print a batch script that trains the job, for `sbatch` without hpcvision or submitit on the login node.

    Printed on a machine of the cluster it can be handed in from any folder, and what would fail is said; elsewhere its
    paths are those of the folder where it is handed in.

    Example: hpcvision script cifar100_baby_mobilenet --cluster generic > job.sh
    """
    from hpcvision.launch.cluster import placed, print_script
    from hpcvision.launch.profile import load_profile
    from hpcvision.rundir import runs_folder

    profile = load_profile(cluster)
    if profile.executor == "local":
        raise UserError(f"--cluster={cluster} has no batch system; give the profile of a Slurm cluster")
    place = placed(profile, nodes=nodes, gpus_per_node=gpus_per_node, processes=processes, minutes=minutes)
    config = configured(job, overrides)
    print_script(job, overrides or [], config, runs_folder(runs), profile, place)


def status(wanted: Wanted = None, runs: Runs = None) -> None:
    """Say how runs and sweeps are doing, from their folders, squeue and sacct together.

    Example: hpcvision status addnist
    """
    from hpcvision.launch.folders import nothing_in
    from hpcvision.launch.status import statuses
    from hpcvision.report.tables import print_statuses
    from hpcvision.rundir import runs_folder

    folder = runs_folder(runs)
    found = statuses(folder, wanted)
    print_statuses(found) if found else print(nothing_in(folder))


def logs(
    wanted: Annotated[str, typer.Argument(metavar="RUN", help="Part of a run's name or fingerprint.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run has ended.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="Lines from the end.")] = 20,
    runs: Runs = None,
) -> None:
    """Print the log of a submitted run or sweep.

    Example: hpcvision logs addnist_cnn-e8c82c433644 -f
    """
    from hpcvision.launch.folders import the_one
    from hpcvision.launch.watch import show_log
    from hpcvision.rundir import runs_folder

    show_log(the_one(runs_folder(runs), wanted), lines=lines, follow=follow)


def cancel(
    wanted: Annotated[str, typer.Argument(metavar="RUN", help="Part of the names or fingerprints of runs, or all.")],
    runs: Runs = None,
) -> None:
    """Cancel the jobs of runs and sweeps; they save first, and `hpcvision resume` goes on.

    What this machine trains is stopped as by Ctrl-C, and goes on by its own command.

    Example: hpcvision cancel addnist
    """
    from hpcvision.launch.cancel import cancel_jobs, stop_here
    from hpcvision.launch.folders import chosen
    from hpcvision.rundir import runs_folder

    folder = runs_folder(runs)
    found = chosen(folder, wanted)
    try:
        ids, others = cancel_jobs(found, folder)
    except UserError:  # no Slurm here, or none that answers
        for name in stop_here([rundir for rundir in found if not rundir.job.exists()], []):
            print(f"told to save and end on this machine: {name}")
        raise
    here = stop_here(found, ids)
    if ids:
        print(f"cancelled {len(ids)} job(s): {', '.join(ids)}")
    if here:
        print(f"told to save and end on this machine: {', '.join(here)}")
    if not ids and not here:
        print("none of these is in the queue or trained on this machine; one that has just been started: try again")
    if others:
        print(f"these runs shared them: {', '.join(others)}; hpcvision resume submits them again")


def resume(
    wanted: Annotated[str, typer.Argument(metavar="RUN", help="Part of the names or fingerprints of runs, or all.")],
    cluster: Annotated[
        str | None, typer.Option(help="Cluster profile (default: the one it was submitted with).")
    ] = None,
    minutes: Minutes = None,
    runs: Runs = None,
) -> None:
    """Submit runs and sweeps again that have not finished and are not in the queue; they go on where they stopped.

    Example: hpcvision resume cifar100_baby_mobilenet --minutes 120
    """
    from hpcvision.launch.cluster import resume_runs
    from hpcvision.launch.folders import chosen
    from hpcvision.launch.profile import load_profile
    from hpcvision.rundir import runs_folder

    if cluster and load_profile(cluster).executor == "local":
        raise UserError(f"--cluster={cluster} is this machine: what it ran goes on by the same command as before")
    folder = runs_folder(runs)
    found = chosen(folder, wanted)
    sweeps = [rundir for rundir in found if rundir.is_sweep]
    for rundir in sweeps:
        resume_sweep(rundir, cluster, minutes, only=len(found) == 1)
    if len(sweeps) < len(found):
        resume_runs([rundir for rundir in found if rundir not in sweeps], folder, cluster=cluster, minutes=minutes)


def resume_sweep(rundir: "RunDir", cluster: str | None, minutes: int | None, *, only: bool) -> None:
    """Submit what is left of a sweep by its own command; only: it alone is asked for, so that to fail is an error."""
    from hpcvision.cli import app
    from hpcvision.launch import queue
    from hpcvision.launch.record import Record
    from hpcvision.launch.status import is_finished, present_job

    record, name = Record.of(rundir), rundir.folder.name
    if is_finished(rundir):
        print(f"nothing to resume: {name} is finished")
        return
    if record is None or not record.command:
        if only:
            raise UserError(f"{name} was not submitted: the command that began it goes on with --resume")
        return
    job, facts = present_job(record, queue.in_queue(record.jobs))
    if facts is not None and facts.lives:
        print(f"{name} is in the queue already as job {job} ({facts.state}); see hpcvision status")
    else:
        given = {"--cluster": cluster, "--minutes": minutes}
        words = [str(word) for option, value in given.items() if value is not None for word in (option, value)]
        typer.main.get_command(app).main([*record.command, *words], standalone_mode=False)


def doctor(
    cluster: Annotated[str, typer.Option(help="Cluster profile: a name in slurm/profiles or a .toml file.")] = "local",
    runs: Runs = None,
) -> None:
    """Say what would go wrong on a cluster, and how to mend it; ends with 2 when something would.

    Example: hpcvision doctor --cluster ncc
    """
    from hpcvision.launch.doctor import examine
    from hpcvision.launch.profile import load_profile
    from hpcvision.report.tables import print_findings
    from hpcvision.rundir import runs_folder

    sys.exit(2 if print_findings(examine(load_profile(cluster), runs_folder(runs))) else 0)


def init(
    account: Annotated[
        str | None, typer.Option(help="Slurm account (default: asked for where you have several).")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="Partition (default: asked for where several have GPUs).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write (default: ~/.config/hpcvision/CLUSTER.toml).")
    ] = None,
) -> None:
    """Write the profile of the cluster that this is a login node of.

    Example: hpcvision init --account project
    """
    from hpcvision.launch.detect import detect
    from hpcvision.launch.profile import own_profile_folder

    def ask(what: str, choices: list[str]) -> str | None:
        if not sys.stdin.isatty():
            return None
        return str(typer.prompt(f"{what} ({', '.join(choices)})", default=choices[0]))

    site = detect(ask, account=account, partition=partition)
    path = output or own_profile_folder() / f"{site.name}.toml"
    site.write(path)
    print(path.read_text(), end="")
    print(f"written to {path}; next: hpcvision doctor --cluster {path if output else site.name}")
