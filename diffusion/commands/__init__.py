"""Programs beside the experiments: join runs, judge images, compare two runs, prepare data; how they start and end."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from diffusion import naming
from diffusion.processes import one_line


def fail(message: str) -> NoReturn:
  """Ends the program for bad input: one line, and status 2."""
  print(f'error: {message}', file=sys.stderr, flush=True)
  raise SystemExit(2)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """The arguments that are no flags, for `absl.app.run`, whose own parser leaves with 1 for bad flags and --help."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    said = ' '.join(str(error).split())
    choice = re.fullmatch(r'flag --\w+=(.*): value should be one of <(.*)>', said)
    near = f': the nearest is {naming.nearest(choice[1], choice[2].split("|"))!r}' if choice else ''
    fail(said + near)
  except SystemExit:  # help was asked for, and has been printed
    raise SystemExit(0) from None


def define_moved() -> None:
  """The flag of every command that reads a run's data."""
  flags.DEFINE_multi_string(
    'moved',
    [],
    "FIELD=PLACE: where the run's data lies now, by the field of its configuration, e.g. data_dir=~/sets.",
  )


def places(texts: Sequence[str]) -> dict[str, str]:
  """What `--moved` says, place by field; raises ValueError for what is no FIELD=PLACE."""
  for text in texts:
    if not text.partition('=')[0] or '=' not in text:
      raise ValueError(f'--moved takes FIELD=PLACE, e.g. data_dir=~/sets, got {text!r}')
  return dict(text.split('=', 1) for text in texts)


def run_command(
  define_flags: Callable[[], None], main: Callable[[Sequence[str], flags.FlagValues], None]
) -> None:
  """Parses the flags and calls `main` with the other arguments and the flags.

  The program leaves with status 2 and one line for bad input: a flag, a ValueError, an OSError, or a package that is
  missing.

  Args:
    define_flags: of the command; not on import, where they would meet those of the importing program.
    main: does the work.
  """

  def guarded(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    try:
      main(argv[1:], flags.FLAGS)
    except (ValueError, OSError, ImportError) as error:
      fail(one_line(error))

  define_flags()
  app.run(guarded, flags_parser=parse_flags)
