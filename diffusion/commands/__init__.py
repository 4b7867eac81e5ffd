"""Programs beside the experiments: join runs, judge images, compare two runs, prepare data; how they start and end."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from diffusion.processes import one_line


def run_command(
  define_flags: Callable[[], None], main: Callable[[Sequence[str], flags.FlagValues], None]
) -> None:
  """Parses the flags and calls `main` with the other arguments and the flags.

  The program leaves with status 2 and one line for bad input: a ValueError, an OSError, or a package that is missing.

  Args:
    define_flags: of the command; not on import, where they would meet those of the importing program.
    main: does the work.
  """

  def guarded(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    try:
      main(argv[1:], flags.FLAGS)
    except (ValueError, OSError, ImportError) as error:
      print(f'error: {one_line(error)}', file=sys.stderr)
      raise SystemExit(2) from None

  define_flags()
  app.run(guarded)
