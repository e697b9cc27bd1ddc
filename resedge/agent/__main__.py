"""`python3 resedge-agent.pyz`."""

from __future__ import annotations

import sys

from resedge.agent.commands import run


def main() -> None:
    """Obey the command line, and exit."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
