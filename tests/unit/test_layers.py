"""Which part may import which: read from the sources, so that a lower layer never learns of a higher one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hpcvision"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    5: {"cli", "cli_cluster", "cli_images", "cli_results", "cli_sweep", "__main__"},
    4: {"launch", "sweep", "report", "verify"},
    3: {"training"},
    2: {"results"},
    1: {"data", "models", "diffusion", "metrics"},
    0: {
        "config",
        "errors",
        "rundir",
        "provenance",
        "seeding",
        "stopping",
        "place",
        "checksum",
        "importing",
        "distributed",
        "__init__",
    },
}
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts}

ONLY_IMPORTER = {
    "submitit": "launch/",
    "ray": "sweep/",
    "h5py": "results/",
    "matplotlib": "report/",
    "torch_fidelity": "metrics/fidelity.py",
}
MEANINGLESS = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "base"}
LONGEST = 300


def name_of(path):
    return str(path.relative_to(PACKAGE))


def part_of(path):
    return Path(name_of(path)).parts[0].removesuffix(".py")


def imports_of(source):
    """Every imported module, at the top or inside a function; `from a import b` gives a.b, which may be a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offences(path, source):
    """What a file imports against the table, in words."""
    part, found = part_of(path), []
    for module in imports_of(source):
        top, *rest = module.split(".")
        if top in {"jobs", "sweeps", "tests", "benchmarks"}:
            found.append(f"{top} is never imported")
        if top in ONLY_IMPORTER and not name_of(path).startswith(ONLY_IMPORTER[top]):
            found.append(f"{top} is imported by {ONLY_IMPORTER[top]} only")
        if top != "hpcvision" or not rest or rest[0] not in LAYER_OF:
            continue
        own, other = LAYER_OF[part], LAYER_OF[rest[0]]
        if other > own:
            found.append(f"{part} is of layer {own} and imports {rest[0]} of layer {other}")
        if own == other == 1 and part != rest[0]:
            found.append(f"{part} and {rest[0]} are both of layer 1")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_nothing_from_above_and_no_library_of_another(path):
    assert offences(path, path.read_text()) == []


@pytest.mark.parametrize(
    "name, source, words",
    [
        ("results/writer.py", "from hpcvision.training import loop", "layer 3"),
        ("models/x.py", "def f():\n    import hpcvision.results.writer", "layer 2"),
        ("models/x.py", "from hpcvision import data", "both of layer 1"),
        ("rundir.py", "from hpcvision import cli", "layer 5"),
        ("training/loop.py", "def f():\n    from ray import tune", "by sweep/ only"),
        ("report/tables.py", "import h5py._hl.files", "by results/ only"),
        ("launch/job.py", "from jobs.addnist_cnn import config", "never imported"),
        ("metrics/frechet.py", "import torch_fidelity", "by metrics/fidelity.py only"),
    ],
)
def test_an_import_against_the_table_is_seen(name, source, words):
    assert [words in offence for offence in offences(PACKAGE / name, source)] == [True]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_belongs_to_a_layer(path):
    assert part_of(path) in LAYER_OF


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_longer_than_300_lines(path):
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_in_its_first_line_why_it_exists(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_or_folder_has_a_name_that_says_nothing(path):
    assert MEANINGLESS.isdisjoint(Path(name_of(path)).with_suffix("").parts)


@pytest.mark.parametrize("part", ["results", "verify", "report"])
def test_analysis_reads_no_pickle(part):
    """Nor what would: torch.load, numpy with allow_pickle, pandas.read_pickle."""
    for path in sorted((PACKAGE / part).rglob("*.py")):
        modules = {module.split(".")[0] for module in imports_of(path.read_text())}
        assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, path
        for word in ("torch.load", "allow_pickle", "read_pickle", "np.load"):
            assert word not in path.read_text(), (path, word)
