"""`python -m miscue`."""

from miscue.cli import main

if __name__ == "__main__":
    main()
