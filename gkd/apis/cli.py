"""What the command-line tools share."""

from __future__ import annotations

import sys
from typing import Callable

from gkd.errors import GKDError


def run(main: Callable[[], None]) -> None:
    """Run a tool; what the user can mend is one message and exit status 2, not a traceback."""
    try:
        main()
    except GKDError as error:
        print(f'\nerror: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on from the last checkpoint.', file=sys.stderr)
        sys.exit(130)
