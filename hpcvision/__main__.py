"""`python -m hpcvision` is `hpcvision`."""

from hpcvision.cli import main

main()
