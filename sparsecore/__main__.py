"""``python -m sparsecore``: the command line, or one line that says how to install it."""

from __future__ import annotations

import sys

from sparsecore.errors import MissingExtraError, require_extra


def main() -> None:
    """Run the command line. Needs the extra ``[cli]``; errors are one line, exit code 2."""
    try:
        for library in ("click", "rich"):
            require_extra(library, "cli")
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    from sparsecore.cli import cli

    cli(prog_name="sparsecore")


if __name__ == "__main__":
    main()
