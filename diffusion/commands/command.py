"""What the commands share: how they start, and how they end."""

import sys
from collections.abc import Callable, Sequence

from absl import app, logging

from diffusion.processes import one_line


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Parses the flags and calls `main` with the other arguments.

  The program leaves with status 2 and one line for bad input: a ValueError, an OSError, or a package that is missing.

  Args:
    main: does the work.
  """

  def guarded(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    try:
      main(argv[1:])
    except (ValueError, OSError, ImportError) as error:
      print(f'error: {one_line(error)}', file=sys.stderr)
      raise SystemExit(2) from None

  app.run(guarded)
