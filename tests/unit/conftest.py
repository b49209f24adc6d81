"""Small records and archives for the tests of what a run leaves behind."""

import sys

import pytest


@pytest.fixture
def archive(make_record, tmp_path):
    """A results.h5 of that run."""
    from hpcvision.results.writer import write_results

    write_results(tmp_path / "results.h5", make_record())
    return tmp_path / "results.h5"


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """A function that runs a command in this process: exit code, output, error output."""
    from hpcvision import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCVISION_DATA", "data")
    monkeypatch.setenv("HPCVISION_RUNS", "runs")

    def run_here(*words):
        monkeypatch.setattr(sys, "argv", ["hpcvision", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run_here


@pytest.fixture
def fake_commands(tmp_path, monkeypatch):
    """A function that puts commands in front of PATH: the text of a bash script by name."""
    folder = tmp_path / "fake commands"

    def make(**scripts):
        folder.mkdir(exist_ok=True)
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    return make
