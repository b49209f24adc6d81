"""What `hpcvision submit` and `script` do on a login node: find all that is wrong, then hand over to Slurm."""

import math
import shlex
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

from hpcvision.config import RunConfig, apply
from hpcvision.errors import UserError
from hpcvision.launch import queue
from hpcvision.launch.batch import Placement, check_path, script
from hpcvision.launch.checked import facts_of
from hpcvision.launch.job import prepare, put_back
from hpcvision.launch.lock import only_one
from hpcvision.launch.profile import Profile, load_profile
from hpcvision.launch.record import Record, now
from hpcvision.launch.space import check_space
from hpcvision.rundir import RunDir, data_folder


def placed(
    profile: Profile,
    *,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
    processes: int | None = None,
    minutes: int | None = None,
) -> Placement:
    """The profile's placement with what the command line says instead; one process per GPU, or what is asked."""
    gpus = profile.gpus_per_node if gpus_per_node is None else gpus_per_node
    if gpus and processes and processes != gpus:
        raise UserError(f"--processes={processes} on {gpus} GPUs a node: there is one process for each; leave it out")
    return Placement(
        nodes=nodes or profile.nodes,
        tasks_per_node=processes or gpus or 1,
        gpus_per_node=gpus,
        minutes=minutes or profile.time_limit_minutes,
    )


def with_seeds(config: RunConfig, words: str | None) -> list[RunConfig]:
    """One configuration for every seed of `0-4` or `0,3,8-9`; without words the one that is given."""
    if words is None:
        return [config]
    seeds: list[int] = []
    for word in words.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(f"--seeds={words!r}: write numbers and ranges with commas, such as 0-4 or 0,3,8-9")
        seeds += range(int(first), int(last or first) + 1)
    return [apply(config, {"seed": seed}) for seed in dict.fromkeys(seeds)]


def submit_to_cluster(
    configs: list[RunConfig],
    runs: Path,
    *,
    cluster: str,
    profile: Profile,
    place: Placement,
    after: str | None = None,
    chain: int = 1,
    runs_per_job: int | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    again: bool = False,
) -> list[RunDir]:
    """Submit the runs, as one job, an array or several; gives the runs that were submitted.

    A run that is finished or in the queue already is left out, with a line that says so; again=True lets it wait for
    its present job to end instead. Raises UserError before anything is submitted for whatever can be known to fail.
    """
    from hpcvision.launch import slurm

    if chain > 1:
        profile = profile.model_copy(update={"requeue": False})
    check_before_the_queue(configs, runs, profile, place)
    chosen, waits = runs_to_submit(configs, runs, fresh=fresh, again=again)
    if not chosen:
        return []
    groups = grouped(chosen, place, profile, runs_per_job, chain)
    name = chosen[0].folder_name if len(chosen) == 1 else chosen[0].run_name
    folder = (runs / name / "submitted" if len(chosen) == 1 else runs / ".submitted").absolute()
    after = ":".join([*([after] if after else []), *(job for jobs in waits.values() for job in jobs)]) or None
    if dry_run:
        for config in chosen:
            check_space(config, facts_of(config).stored_numbers, runs / config.folder_name, fresh=fresh)
        sizes = [min(profile.max_array_size, len(groups) - at) for at in range(0, len(groups), profile.max_array_size)]
        text = slurm.script_of(slurm.executor_for(name, folder, profile, place, after), sizes[0])
        print(text)
        print(f"# {queue.test_only(text, profile.submit_command)}")
        if len(sizes) > 1:
            print(f"# the same again for arrays of {', '.join(map(str, sizes[1:]))} tasks")
        if chain > 1:
            print(f"# then {chain - 1} more of each, every one with --dependency=afterany on the one before")
        print(f"# {len(chosen)} run(s) in {len(groups) * chain} job(s); nothing was submitted")
        return []
    aside: dict[Path, Path] = {}
    try:
        rundirs = {
            config.folder_name: prepare(config, runs, fresh=fresh, on_cluster=True, aside=aside) for config in chosen
        }
        for folder_name, rundir in rundirs.items():
            if folder_name not in waits:
                with only_one(rundir):
                    pass
        parts = [[rundirs[config.folder_name] for config in group] for group in groups]
        earlier = {rundirs[folder_name]: jobs for folder_name, jobs in waits.items()}
        if cluster.endswith(".toml"):
            cluster = str(Path(cluster).absolute())
        # Ctrl-C and a lost connection wait until it is written down which jobs there are.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
        try:
            for first in range(0, len(parts), profile.max_array_size):
                part = parts[first : first + profile.max_array_size]
                submit_part(part, cluster, profile, place, name, folder, after, chain, earlier)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    except UserError as error:
        if not isinstance(error, queue.MayBeTaken):
            put_back(aside)
        raise
    return list(rundirs.values())


def check_before_the_queue(configs: list[RunConfig], runs: Path, profile: Profile, place: Placement) -> None:
    """Raise UserError for whatever of these runs can be known to fail on this cluster."""
    from hpcvision.launch import slurm

    for config in configs:
        config.train.local_batch_size(place.world_size)
    slurm.check(profile, place)
    slurm.check_shared(runs, profile)
    if any(config.data.source != "synthetic" for config in configs):
        slurm.check_shared(data_folder(), profile, "set HPCVISION_DATA to")
    check_path(runs.absolute())
    for config in configs:
        facts_of(config)


def submit_part(
    groups: list[list[RunDir]],
    cluster: str,
    profile: Profile,
    place: Placement,
    name: str,
    folder: Path,
    after: str | None,
    chain: int,
    earlier: dict[RunDir, list[str]],
) -> None:
    """One job or one array, and the jobs of its chain, each after the one before; writes the records of the runs.

    earlier: jobs of these runs that are in the queue already.
    """
    from hpcvision.launch import slurm

    records: dict[RunDir, Record] = {}
    together = max(map(len, groups))
    for _ in range(chain):
        submitted = slurm.submit(slurm.executor_for(name, folder, profile, place, after), groups, place)
        after = submitted[0].job_id.partition("_")[0]
        for job in submitted:
            for rundir in job.runs:
                before = records.get(rundir)
                ids = [*(before.jobs if before else earlier.get(rundir, [])), job.job_id]
                records[rundir] = Record(cluster, ids, str(job.log), now(), asdict(place), chain, together)
                records[rundir].write(rundir)  # at once: a job that nobody knows of is worse
        print(f"submitted {described(groups)} as job {after} on {cluster}")
    logs = sorted({record.log for record in records.values()})
    print(f"log: {logs[0]}" if len(logs) == 1 else f"logs: {len(logs)}; one of a run: hpcvision logs RUN")


def described(groups: list[list[RunDir]]) -> str:
    """A run by its name, or how many there are in how many tasks."""
    count = sum(map(len, groups))
    if count == 1:
        return groups[0][0].folder.name
    return f"{count} runs" + (f" in {len(groups)} tasks" if len(groups) < count else "")


def runs_to_submit(
    configs: list[RunConfig], runs: Path, *, fresh: bool, again: bool
) -> tuple[list[RunConfig], dict[str, list[str]]]:
    """(runs that are neither finished nor in the queue, by folder the jobs to wait for); says what is left out."""
    rundirs = {config.folder_name: RunDir((runs / config.folder_name).absolute()) for config in configs}
    records = {name: record for name, rundir in rundirs.items() if (record := Record.of(rundir))}
    known = queue.in_queue(job for record in records.values() for job in record.jobs)
    chosen, waits = [], {}
    for config in configs:
        name = config.folder_name
        living = [job for job in (records[name].jobs if name in records else []) if job in known and known[job].lives]
        if rundirs[name].is_finished and not fresh:
            print(f"{name} is finished already; see hpcvision results list, or give --fresh")
        elif living and not again:
            print(f"{name} is in the queue already as job {living[0]} ({known[living[0]].state}); see hpcvision status")
        elif living and fresh:
            raise UserError(f"{name} is in the queue as job {living[0]}; cancel it before you start it --fresh")
        else:
            chosen.append(config)
            if living:
                waits[name] = living
    return chosen, waits


def grouped(
    configs: list[RunConfig], place: Placement, profile: Profile, runs_per_job: int | None, chain: int
) -> list[list[RunConfig]]:
    """The runs of every job: as many as asked for, or more where the limit on the jobs of one user needs it."""
    most = len(configs)
    if profile.max_submitted_jobs:
        most = (profile.max_submitted_jobs - queue.own_jobs()) // chain
        if most < 1:
            links = f", and a chain of {chain} is so many" if chain > 1 else ""
            raise UserError(
                f"this cluster takes {profile.max_submitted_jobs} jobs of one user and you have {queue.own_jobs()} in "
                f"the queue{links}; wait for some to end{', or give a shorter --chain' if links else ''}"
            )
    asked_for = runs_per_job or 1
    each = max(asked_for, math.ceil(len(configs) / most))
    if each > 1 and place.world_size > 1:
        asked = (
            f"--runs-per-job={each}" if each == asked_for else f"{len(configs)} jobs at once, where {most} are allowed,"
        )
        raise UserError(
            f"{asked} needs runs of one process, these have {place.world_size}; submit fewer seeds at a time"
        )
    if each > asked_for:
        print(f"{each} runs in each job, as this cluster takes {most} more jobs of yours")
    return [configs[first : first + each] for first in range(0, len(configs), each)]


def print_script(
    job: str, overrides: list[str], config: RunConfig, runs: Path, profile: Profile, place: Placement
) -> None:
    """A batch script for `sbatch` that trains the job without submitit.

    Where Slurm is, all that would fail is said here, all paths are whole and it runs in the present folder, wherever it
    is handed in; elsewhere the paths, and `python`, are those of the folder on the cluster where it is handed in.
    """
    from hpcvision.models.counting import check_cap

    if shutil.which(shlex.split(profile.submit_command)[0]):
        check_before_the_queue([config], runs, profile, place)
        if job.endswith(".py"):
            job = str(Path(job).absolute())
        folder = Path.cwd()
        check_path(folder)
        runs, python = runs.absolute(), None
        exports = {"HPCVISION_DATA": str(data_folder().absolute())}
    else:
        config.train.local_batch_size(place.world_size)
        check_path(runs)
        check_cap(config)
        python, exports, folder = "python", {}, None
    words = ["-m", "hpcvision", "train", job, *overrides, "--runs", str(runs)]
    text = script(
        config.folder_name, profile, place, words, log="%x-%j.log", python=python, exports=exports, folder=folder
    )
    print(text, end="")


def resume_runs(found: list[RunDir], runs: Path, *, cluster: str | None, minutes: int | None) -> None:
    """Submit runs again as they were submitted, with what is given instead; those of one kind together."""
    if cluster and load_profile(cluster).executor == "local":
        raise UserError(f"--cluster={cluster} is this machine: what it ran goes on by the same command as before")
    kinds: dict[tuple[str, Placement, int, int], list[RunConfig]] = {}
    for rundir in found:
        record = Record.of(rundir)
        known = record is not None and record.place
        if ".replaced-" in rundir.folder.name:
            continue  # set aside by --fresh; the run itself is in another folder
        if rundir.is_finished or (len(found) > 1 and not known and cluster is None):
            continue  # of several, those that a cluster has had
        if not known and cluster is None:
            raise UserError(f"{rundir.folder.name} was on no cluster: the same command goes on; or give --cluster")
        where = cluster or (record.cluster if record else "")
        place = Placement(**record.place) if record and known and not cluster else placed(load_profile(where))
        place = replace(place, minutes=minutes or place.minutes)
        chain, together = (record.chain, record.runs_per_job) if record and not cluster else (1, 1)
        kinds.setdefault((where, place, chain, together), []).append(rundir.read_config())
    if not kinds:
        print("nothing to resume: these runs are finished, or no cluster has had them (see --cluster)")
    for (where, place, chain, together), configs in kinds.items():
        profile = load_profile(where)
        submit_to_cluster(
            configs, runs, cluster=where, profile=profile, place=place, chain=chain, runs_per_job=together
        )


def only_on_clusters(**given: object) -> None:
    """Raise UserError when an option that only means something on a cluster is given for this machine."""
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} has no meaning with --cluster local; leave it out")
