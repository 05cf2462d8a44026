"""`python -m miscue`, and the `miscue` command."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line.

    What imports make is never garbage: unless collection rests meanwhile and leaves it alone later, also at the end,
    a command spends a second on looking at it.
    """
    gc.disable()
    from miscue import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
