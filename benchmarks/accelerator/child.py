"""One measurement in a process of its own: python -m benchmarks.accelerator.child FUNCTION PLAN RESULT ARGUMENTS."""

import json
import os
import pathlib
import sys

from benchmarks.accelerator import measure
from benchmarks.accelerator.plans import PLANS


def main() -> None:
  """Writes what the function yields into the file RESULT, each time over what it yielded before."""
  name, plan, result, arguments = sys.argv[1:]
  path = pathlib.Path(result)
  for found in getattr(measure, name)(PLANS[plan], **json.loads(arguments)):
    beside = path.with_suffix('.new')
    beside.write_text(json.dumps(found))
    beside.replace(path)
  sys.stdout.flush()
  os._exit(0)  # what a library does at its end is not measured, and may hang


if __name__ == '__main__':
  main()
