"""Console entry `hpcvision`; imports no torch, ray or h5py before a command needs it, for the sake of login nodes."""

import errno
import io
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hpcvision import cli_cluster, cli_images, cli_results, cli_sweep
from hpcvision.cli_cluster import Fresh, Job, Overrides, Runs, configured
from hpcvision.errors import UserError
from hpcvision.stopping import end_process, ends_at_exit

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    help="Train the best vision models that fit under a hard cap.\n\n"
    "Example: hpcvision train cifar100_baby_mobilenet data.source=synthetic train.steps=300",
)
data_app = typer.Typer(
    no_args_is_help=True, help="Fetch data sets and look at what is there.\n\nExample: hpcvision data status"
)
app.add_typer(data_app, name="data")
app.add_typer(cli_results.results_app, name="results")

Processes = Annotated[int | None, typer.Option(min=1, help="Number of processes (default: one per GPU, or per core).")]


@app.command()
def jobs() -> None:
    """List the jobs that are there, with their task, model and steps.

    Example: hpcvision jobs
    """
    from hpcvision.report.tables import print_jobs

    print_jobs()


@app.command()
def models() -> None:
    """List the models, with their parameters and multiply-adds at width 1.

    Example: hpcvision models
    """
    from hpcvision.report.tables import print_models

    print_models()


@app.command()
def show(job: Job, overrides: Overrides = None) -> None:
    """Show everything about a job: resolved settings, parameters against the cap, layers, fingerprint.

    Example: hpcvision show cifar100_baby_mobilenet model.width=0.9
    """
    from hpcvision.report.tables import print_job

    print_job(configured(job, overrides))


@app.command()
def train(
    job: Job,
    overrides: Overrides = None,
    processes: Processes = None,
    fresh: Fresh = False,
    runs: Runs = None,
) -> None:
    """Train a job here and now; an unfinished run of the same settings is resumed.

    Under srun this process is one rank of the run. Ctrl-C saves and stops.

    Example: hpcvision train cifar100_baby_mobilenet optim.learning_rate=0.2 --processes 2
    """
    from hpcvision.launch.start import train_here

    sys.exit(train_here(configured(job, overrides), runs, processes=processes, fresh=fresh))


app.command()(cli_sweep.sweep)
app.command()(cli_cluster.submit)
app.command()(cli_cluster.script)
app.command()(cli_cluster.status)
app.command()(cli_cluster.logs)
app.command()(cli_cluster.cancel)
app.command()(cli_cluster.resume)
app.command()(cli_cluster.init)
app.command()(cli_cluster.doctor)
app.command()(cli_images.sample)
app.command()(cli_images.interpolate)
app.command()(cli_images.evaluate)
app.command()(cli_results.plot)
app.command()(cli_results.gallery)
app.command()(cli_results.report)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="cifar100, addnist, or inception (for the FID).")],
    weights: Annotated[
        Path | None, typer.Option(help="inception: a file of its weights, brought here by other means.")
    ] = None,
) -> None:
    """Download a data set, check it and prepare it, or the weights of Inception; run it where there is internet.

    Example: HPCVISION_DATA=/scratch/me/data hpcvision data fetch cifar100
    """
    from hpcvision import data

    if name == "inception":
        from hpcvision.metrics.fidelity import fetch_inception

        typer.echo(f"inception is ready in {fetch_inception(data.inception_folder(), weights)}")
        return
    if weights is not None:
        raise UserError(f"--weights={weights} has no meaning for {name}, only for inception; leave it out")
    folder = data.fetch(name)
    typer.echo(f"{name} is ready in {folder}" if folder else f"{name} is drawn by hpcvision; there is nothing to fetch")


@data_app.command("status")
def data_status(name: Annotated[str | None, typer.Argument(help="One data set (default: all).")] = None) -> None:
    """Say which data sets are there, with the number of images of every split.

    Example: hpcvision data status cifar100
    """
    from hpcvision.report.tables import print_data_status

    print_data_status(name)


def main() -> None:
    """Run the command line; a UserError is one line on standard error and a non-zero exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name or a path may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        refuse(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        refuse(UserError(f"the name {str(error.filename)[:40]}... is longer than a path can be; give another"))


def refuse(error: UserError) -> NoReturn:
    """Say the error in one line, and end with its exit code."""
    line = str(error).replace("\n", "\\n")  # of a path or a value, which may hold anything
    typer.secho(f"hpcvision: {line}", fg="red" if sys.stderr.isatty() else None, err=True)
    if ends_at_exit():  # a rank under srun, which its group has told another code
        end_process(error.exit_code)
    sys.exit(error.exit_code)
