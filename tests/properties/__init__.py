"""What tests of properties draw: by Hypothesis, the same examples at every run, nothing kept between runs."""

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st


def examples(count: int) -> settings:
  """The settings of a property that is tried on so many examples.

  One that fails is shown as it was drawn: making it simpler would run the test hundreds of times.
  """
  phases = (Phase.explicit, Phase.generate)
  return settings(max_examples=count, derandomize=True, deadline=None, database=None, phases=phases)


def number(low: float, high: float) -> st.SearchStrategy[float]:
  """A number between two, subnormal ones left out: where they are flushed to 0 is up to the machine."""
  return st.floats(low, high, allow_subnormal=False)


@st.composite
def interval(draw, low: float, high: float, least: float) -> tuple[float, float]:
  """Two numbers in [low, high], the first smaller by `least` or more."""
  first = draw(number(low, high - least))
  return first, draw(number(first + least, high))


# Of arrays a seed is drawn, not the numbers: their shapes are the same in all examples, so programs compile once.
randoms = st.integers(0, 2**32 - 1).map(np.random.default_rng)
