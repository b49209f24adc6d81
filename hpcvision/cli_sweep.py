"""The sub-command sweep: on this machine, on the nodes of a Slurm job, and submitting such a job."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcvision.cli_cluster import Gpus, Minutes, Overrides, Runs

if TYPE_CHECKING:
    from hpcvision.launch.batch import Placement
    from hpcvision.launch.profile import Profile


def sweep(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep, or path of a sweep file.")],
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials (default: the sweep's own).")] = None,
    cpus_per_trial: Annotated[float, typer.Option(min=0.1, help="CPU cores of every trial.")] = 1.0,
    per_gpu: Annotated[
        int | None, typer.Option(min=1, help="Trials on a GPU at the same time (default: up to 8).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was stopped.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show ten configurations; Slurm: and the script.")
    ] = False,
    cluster: Annotated[str, typer.Option(help="Cluster profile: a name in slurm/profiles or a .toml file.")] = "local",
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Slurm: nodes of one job, joined by Ray (default: 1).")
    ] = None,
    array: Annotated[
        int | None, typer.Option(min=1, help="Slurm: instead, so many jobs apart from each other, a share each.")
    ] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Slurm: CPU cores on every node (default: the profile's, for each GPU).")
    ] = None,
    gpus_per_node: Gpus = None,
    minutes: Minutes = None,
    share: Annotated[
        str | None, typer.Option(help="Train this share of the trials and no more: 0/8 is the first of eight.")
    ] = None,
    runs: Runs = None,
) -> None:
    """Search the neighbours of a job below the cap with Ray Tune, and leave all trials in one sweep.h5.

    Ctrl-C saves all trials and stops; --resume goes on.

    Example: hpcvision sweep demo --trials 4
    """
    from hpcvision.config import parse
    from hpcvision.launch.profile import load_profile
    from hpcvision.rundir import runs_folder
    from hpcvision.sweep.driver import Share, run_sweep

    profile, turned, folder = load_profile(cluster), parse(overrides or []), runs_folder(runs)
    if profile.executor == "local":
        from hpcvision.launch.cluster import only_on_clusters

        only_on_clusters(
            nodes=nodes, array=array, cpus_per_node=cpus_per_node, gpus_per_node=gpus_per_node, minutes=minutes
        )
        sys.exit(
            run_sweep(
                name,
                turned,
                folder,
                trials=trials,
                cpus_per_trial=cpus_per_trial,
                per_gpu=per_gpu,
                resume=resume,
                dry_run=dry_run,
                share=Share.read(share) if share else None,
            )
        )
    from hpcvision.sweep.cluster import submit_sweep

    words = [whole_path(name, ".py"), *(overrides or [])]
    words += as_words(trials=trials, cpus_per_trial=cpus_per_trial, per_gpu=per_gpu, runs=folder.absolute())
    here = as_words(
        cluster=whole_path(cluster, ".toml"),
        nodes=nodes,
        array=array,
        cpus_per_node=cpus_per_node,
        gpus_per_node=gpus_per_node,
        minutes=minutes,
    )
    profile, place = whole_nodes(profile, nodes, array, cpus_per_node, gpus_per_node, minutes, share)
    submit_sweep(
        name,
        words,
        turned,
        folder,
        again=["sweep", *words, *here, "--resume"],
        cluster=cluster,
        profile=profile,
        place=place,
        trials=trials,
        array=array,
        resume=resume,
        dry_run=dry_run,
    )


def whole_path(name: str, suffix: str) -> str:
    """A file's absolute path, as it is to be read from other folders, too; a name as it is."""
    return str(Path(name).absolute()) if name.endswith(suffix) else name


def as_words(**options: object) -> list[str]:
    """The options that are given as words of a command."""
    given = {f"--{name.replace('_', '-')}": str(value) for name, value in options.items() if value is not None}
    return [word for pair in given.items() for word in pair]


def whole_nodes(
    profile: "Profile",
    nodes: int | None,
    array: int | None,
    cpus_per_node: int | None,
    gpus_per_node: int | None,
    minutes: int | None,
    share: str | None,
) -> tuple["Profile", "Placement"]:
    """One task on each node, with the cores of all its trials; raises UserError for what excludes each other."""
    from hpcvision.errors import UserError
    from hpcvision.launch.batch import Placement

    if array and (nodes or 1) > 1:
        raise UserError(f"--array={array} jobs have one node each; leave out --nodes={nodes}")
    if share:
        raise UserError(f"--share={share} is for the jobs themselves; submit with --array")
    gpus = profile.gpus_per_node if gpus_per_node is None else gpus_per_node
    cores = cpus_per_node or profile.cpus_per_task * max(1, gpus)
    place = Placement(
        nodes=nodes or 1, tasks_per_node=1, gpus_per_node=gpus, minutes=minutes or profile.time_limit_minutes
    )
    return profile.model_copy(update={"cpus_per_task": cores}), place
