"""What a run says of its speed, and which dispatches a trace takes."""

import jax
import pytest

from diffusion.models import summary
from diffusion.runs import training
from diffusion.training import step as steps
from diffusion.types import Conditioning
from tests.training import tiny


def test_a_step_takes_three_times_the_products_of_the_network_and_sums_its_losses_by_noise_level():
  experiment = tiny.experiment()
  data, state, _ = tiny.start(experiment)

  def forward(params):
    x, zero = jax.numpy.zeros((1, 8)), jax.numpy.zeros(1)
    told = Conditioning(jax.numpy.zeros(1, int), jax.numpy.zeros((1, 0)))
    return experiment.model.apply({'params': params}, x, zero, told)[0]

  once = summary.flops(forward, state.params.network)
  # Forward, to the weights and to the inputs, since a schedule may learn; a product with a one-hot level beside it.
  assert steps.step_flops(experiment, data, state) == 3 * once + 2 * steps.BUCKETS


def fetch(k):
  """The metrics of a run: what waiting for them takes, none."""
  assert k == 0
  return {}


def test_a_trace_takes_the_dispatches_that_touch_its_span(tmp_path, capsys):
  made = []

  def dispatch(seen):
    made.append(seen)
    return fetch

  with training.traced(dispatch, training.Span(7, 12), 5, tmp_path / 'trace') as traced:
    for at in range(0, 20, 5):
      assert traced([at]) is fetch
      assert made[-1] == [at]
      assert (tmp_path / 'trace').exists() == (at >= 10)  # written once 12 has been passed
  assert capsys.readouterr().out.count('trace of steps 7 to 15') == 1


def test_a_trace_takes_no_dispatch_that_ends_where_it_begins_or_begins_where_it_ends(
  tmp_path, capsys, monkeypatch
):
  done = []
  monkeypatch.setattr(training.devices, 'start_trace', lambda folder: done.append('start'))
  monkeypatch.setattr(training.devices, 'stop_trace', lambda: done.append('stop'))

  def dispatch(seen):
    done.append(seen[0])
    return lambda k: done.append('waited')

  with training.traced(dispatch, training.Span(5, 15), 5, tmp_path) as traced:
    for at in range(0, 25, 5):
      traced([at])
  assert done == [0, 'waited', 'start', 5, 10, 'waited', 'stop', 15, 20]
  assert capsys.readouterr().out == f'trace of steps 5 to 15 in {tmp_path}\n'
  done.clear()
  with training.traced(dispatch, training.Span(0, 5), 5, tmp_path) as traced:
    traced([5])
  assert done == [5]
  assert capsys.readouterr().out == 'no trace: no step of 0 to 5 was made\n'


def test_a_run_that_ends_within_the_span_keeps_what_was_traced(tmp_path, capsys):
  with training.traced(lambda seen: fetch, training.Span(0, 100), 5, tmp_path) as traced:
    traced([0])
  assert 'trace of steps 0 to 5' in capsys.readouterr().out
  assert any(path.name.endswith('.xplane.pb') for path in tmp_path.rglob('*'))


def test_a_run_that_does_not_reach_the_span_says_so(tmp_path, capsys):
  with training.traced(lambda seen: fetch, training.Span(50, 60), 5, tmp_path) as traced:
    traced([0])
  assert 'no trace: no step of 50 to 60 was made' in capsys.readouterr().out


def test_a_trace_that_begins_in_the_middle_of_a_run_names_its_first_step(tmp_path, capsys):
  with training.traced(lambda seen: fetch, training.Span(7, 12), 5, tmp_path) as traced:
    traced([10])
  assert 'trace of steps 10 to 15' in capsys.readouterr().out


@pytest.mark.parametrize('text', ['10', ':', '5:5', '7:3', 'a:b', '-1:4', '1:2:3'])
def test_what_is_no_span_is_refused(text):
  with pytest.raises(ValueError, match='START:STOP'):
    training.parse_span(text)


def test_no_span_is_none():
  assert training.parse_span('') is None
