"""`python -m miscue`."""

from miscue.cli import main

main()
