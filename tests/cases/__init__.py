"""The catalogue's rows: for each technique the line that turns it on, how it is live, and where its form is proven.

`live` compares the technique on with the technique off, in the direction it claims; `proof` is the test of its closed
form or statistic. `docs/catalog.py` writes the lines and the tests into docs/CATALOG.md; `tests/test_catalog.py` runs
them.
"""

from tests.cases import data, loss, network, noise_level, sampling, trajectory, update  # noqa: F401 - they add rows
from tests.cases.base import CASES, Case

__all__ = ['CASES', 'Case']
