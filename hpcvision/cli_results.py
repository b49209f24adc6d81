"""The commands that read archives: `hpcvision results ...`, `plot`, `gallery` and `report`."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hpcvision.errors import UserError

results_app = typer.Typer(no_args_is_help=True, help="Look at finished runs.\n\nExample: hpcvision results list")

Archive = Annotated[Path, typer.Argument(readable=False, help="A results.h5 or sweep.h5, or the folder of one.")]
Archives = Annotated[list[Path], typer.Argument(readable=False, help="results.h5 or sweep.h5 files, or their folders.")]


@contextmanager
def writing(output: Path | None) -> Iterator[None]:
    """A file that cannot be written is one line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # perhaps of a file to read; `main` says which name it is
            raise
        raise UserError(f"cannot write {output}: {error.strerror or error}; choose another --output") from None


@results_app.command("list")
def results_list(
    folder: Annotated[Path | None, typer.Argument(help="Folder of runs (default: $HPCVISION_RUNS or runs/).")] = None,
    where: Annotated[
        str | None, typer.Option(help="Only such runs, as 'model.kind == \"addnist_cnn\" and accuracy > 0.5'.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Sort by this; with - before it the largest first.")] = None,
) -> None:
    """List the runs in a folder with their state and scores; the exit code is 2 when one cannot be read.

    Example: hpcvision results list runs --where "accuracy > 0.5" --sort=-accuracy
    """
    from hpcvision.report.listing import print_runs
    from hpcvision.rundir import runs_folder

    sys.exit(2 if print_runs(runs_folder(folder), where=where, sort=sort) else 0)


@results_app.command()
def show(file: Archive) -> None:
    """Show everything about a run or a sweep: scores with intervals, ledger, provenance, settings.

    Example: hpcvision results show runs/addnist_cnn-e8c82c433644
    """
    from hpcvision.report.archive import print_archive

    print_archive(file)


@results_app.command()
def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="A results.h5, or the folder of a run.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Compare two runs: settings, curves, scores; scores that were not measured alike are not ranked.

    Example: hpcvision results compare runs/addnist_cnn-e8c82c433644 runs/addnist_cnn-0a1b2c3d4e5f
    """
    from hpcvision.report.archive import print_comparison

    print_comparison(*archives_of([one, other]))


@results_app.command()
def export(
    file: Archive,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Parquet; needs --output.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON list of rows.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a text.")] = False,
    name: Annotated[
        str | None,
        typer.Option("--table", help="Of a run train, evaluate, ledger, summary; of a sweep trials, rungs, summary."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write (default: standard output).")
    ] = None,
) -> None:
    """Write a table of a run or a sweep for other programs: its curves or trials, unless --table says another.

    Example: hpcvision results export runs/demo-sweep --csv -o trials.csv
    """
    from hpcvision.report.archive import export as exported

    forms = {"csv": csv, "parquet": parquet, "json": json, "markdown": markdown}
    chosen = [form for form, asked in forms.items() if asked]
    if len(chosen) != 1:
        raise UserError("give one of --csv, --parquet, --json, --markdown")
    with writing(output):
        typer.echo(exported(file, chosen[0], name=name, output=output))  # type: ignore[arg-type]


@results_app.command()
def merge(
    files: Archives,
    output: Annotated[Path, typer.Option("-o", "--output", help="The sweep.h5 to write.")],
) -> None:
    """Merge runs and sweeps, also of several clusters, into one sweep.h5; a run that is there twice is kept once.

    The exit code is 2 when a file could not be read; the rest is merged all the same.

    Example: hpcvision results merge here/*/results.h5 there/sweep.h5 -o all.h5
    """
    from hpcvision.results.merge import merge as merged

    if output.suffix != ".h5":
        raise UserError(f"--output={output} must end in .h5")
    with writing(output):
        kept, doubled, refused = merged(archives_of(files), output)
    for _, words in refused:
        typer.echo(f"hpcvision: {words}", err=True)
    again = f"; {doubled} that were there twice are kept once" if doubled else ""
    typer.echo(f"{output}: {kept} runs{again}")
    sys.exit(2 if refused else 0)


@results_app.command()
def reduce(
    file: Annotated[Path, typer.Argument(readable=False, help="A results.h5, or the folder of a run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The smaller results.h5 to write.")],
    significant_bits: Annotated[
        int, typer.Option(min=8, max=24, help="Of each weight; 24 are exact, 16 take 0.7 of the room.")
    ] = 24,
) -> None:
    """Write a small copy of a finished run that can still be verified: one set of weights, and no drawn images.

    The weights are those that the scores are of, by `ema.headline`. Scores that `verify --scores` computes of rounded
    ones differ a little: by nothing to see with 16 bits, perhaps by too much with 8.

    Example: hpcvision results reduce runs/cifar100_edm-3f1c0a8e5b72 -o cifar100_edm.h5 --significant-bits 16
    """
    from hpcvision.results.reduce import reduce as reduced

    if output.suffix != ".h5":
        raise UserError(f"--output={output} must end in .h5")
    with writing(output):
        size = reduced(archives_of([file])[0], output, significant_bits=significant_bits)
    typer.echo(f"{output}: {size / 1e6:.2f} MB")


@results_app.command()
def verify(
    file: Archive,
    scores: Annotated[bool, typer.Option("--scores", help="Also compute the scores anew; needs the data.")] = False,
) -> None:
    """Prove an archive from itself: parameters, caps, ledger, hashes; the exit code is 1 when something is wrong.

    Example: hpcvision results verify runs/addnist_cnn-e8c82c433644 --scores
    """
    from hpcvision.report.tables import print_findings
    from hpcvision.verify import verify as verified

    sys.exit(1 if print_findings(verified(archives_of([file])[0], scores=scores)) else 0)


def archives_of(files: list[Path]) -> list[Path]:
    """The archives of files and folders."""
    return [
        file / ("sweep.h5" if (file / "sweep.h5").exists() else "results.h5") if file.is_dir() else file
        for file in files
    ]


def plot(
    files: Archives,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="PNG, PDF or SVG (default: training.png or sweep.png beside).")
    ] = None,
) -> None:
    """Draw the training graph of a run, of several over each other, or a sweep's objective against what it turned.

    Example: hpcvision plot runs/addnist_cnn-e8c82c433644 -o training.pdf
    """
    from hpcvision.report.figures import drawn_for_user, training_graph
    from hpcvision.report.listing import is_sweep
    from hpcvision.report.several import curves_over_each_other, sweep_figure

    archives = archives_of(files)
    if len(archives) > 1:
        typer.echo(drawn_for_user(curves_over_each_other, archives, output or Path("comparison.png")))
        return
    archive = archives[0]
    if is_sweep(archive):
        typer.echo(drawn_for_user(sweep_figure, archive, output or archive.with_name("sweep.png")))
    else:
        typer.echo(drawn_for_user(training_graph, archive, output or archive.with_name("training.png")))


def gallery(
    files: Archives,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="PNG, PDF or SVG (default: samples.png beside).")
    ] = None,
) -> None:
    """Draw all samples and interpolations of a diffusion model, or the samples of several from the same noise.

    Example: hpcvision gallery runs/cifar100_ddpm_small-59407c89c1ed -o grid.png
    """
    from hpcvision.report.figures import drawn_for_user, samples_picture
    from hpcvision.report.several import same_noise

    archives = archives_of(files)
    if len(archives) > 1:
        typer.echo(drawn_for_user(same_noise, archives, output or Path("same_noise.png")))
    else:
        typer.echo(drawn_for_user(samples_picture, archives[0], output or archives[0].with_name("samples.png")))


def report(
    files: Archives,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained page about runs and sweeps: it needs no network, and opens from a disk.

    Example: hpcvision report runs/addnist_cnn-e8c82c433644 runs/demo-sweep -o report.html
    """
    from hpcvision.report.page import write_page

    if output.suffix != ".html":
        raise UserError(f"--output={output} must end in .html")
    with writing(output):
        typer.echo(write_page(archives_of(files), output))
