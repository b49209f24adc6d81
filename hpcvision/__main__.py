"""Console entry: `hpcvision`, or `python -m hpcvision`."""

from hpcvision.importing import collector_off


def main() -> None:
    """Run the command that is given."""
    with collector_off():
        from hpcvision.cli import main as run
    run()


if __name__ == "__main__":
    main()
