"""The catalogue's rows: for each technique what turns it on, how it is live, and where its form is proven.

A new technique is one more row: copy one from the `TABLE` of the place where it acts. `tests/test_catalog.py` runs what
the rows say, and `docs/catalog.py` writes it into docs/CATALOG.md.
"""

from tests.cases import data, loss, network, noise_level, sampling, trajectory, update

CASES = (
  *data.TABLE,
  *noise_level.TABLE,
  *network.TABLE,
  *loss.TABLE,
  *update.TABLE,
  *trajectory.TABLE,
  *sampling.TABLE,
)
