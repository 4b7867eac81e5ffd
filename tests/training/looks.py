"""A look at a run that is not there: a step and its row, which is all that most callbacks ask for."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Seen(NamedTuple):
  step: int
  row: Mapping[str, Any]
