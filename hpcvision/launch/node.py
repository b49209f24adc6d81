"""Entry of a task that submitit's batch script starts: `python -m hpcvision.launch.node FOLDER`."""

from hpcvision import ahead


def main() -> None:
    """Submitit's own entry, beside which torch's libraries are loaded."""
    ahead.load_torch()
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
