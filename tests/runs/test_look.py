"""What a callback sees is the run's; one of an experiment file's own reaches all that a run writes."""

import inspect
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.process import gaussian
from diffusion.reporting import plots
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import look as looks
from diffusion.runs.look import LookAtRun
from diffusion.runs.run import Position, Run
from diffusion.training import state as states
from diffusion.training.callbacks import sample_grid
from diffusion.types import Conditioning
from tests.programs import Program
from tests.reporting.test_rows import scalars
from tests.runs import own_callback
from tests.training import test_processes, tiny


def run_own(workdir, *flags, processes=((),)):
  """Starts the program in processes that end with 0."""
  command = 'tests.runs.own_callback', '--smoke', f'--workdir={workdir}', *flags
  found = [program.finish() for program in [Program(*command, *one) for one in processes]]
  assert [status for status, _ in found] == [0] * len(processes), found


def logged(workdir):
  """(step, looks, middle) of the rows that have them."""
  rows = read_json_lines(workdir / 'metrics.jsonl')
  assert all('loss' in row for row in rows)  # no row is the callback's alone
  return [(row['step'], row['mine/looks'], row['mine/mean']) for row in rows if 'mine/looks' in row]


@pytest.fixture(scope='module')
def own(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('own') / 'run'
  run_own(workdir, '--cpu_devices=2')
  return workdir


def test_a_callback_of_an_experiment_file_takes_fifteen_lines():
  assert len(inspect.getsource(own_callback.middle).splitlines()) <= 15


def test_what_it_logs_is_in_the_rows_in_tensorboard_and_in_the_curves(own, monkeypatch):
  found = logged(own)
  assert [(step, looks) for step, looks, _ in found] == [(20, 1), (40, 2)]
  assert [(step, tag, value) for step, tag, value in scalars(own / 'events') if tag.startswith('mine')] == [
    (step, f'mine/{name}', pytest.approx(value))
    for step, looks, mean in found for name, value in (('looks', looks), ('mean', mean))
  ]  # fmt: skip
  assert (own / 'curves.png').exists()
  titles = []
  monkeypatch.setattr(
    'diffusion.reporting.history.save_figure',
    lambda figure, path, title: titles.extend(axes.get_title(loc='left') for axes in figure.axes),
  )
  plots.curves(read_json_lines(own / 'metrics.jsonl'), own / 'again.png')
  assert 'mine' in titles


@pytest.mark.slow
def test_it_survives_a_resume(own, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(own, workdir)
  run_own(workdir, '--cpu_devices=2', '--extend=20')
  found = logged(workdir)
  assert found[:2] == logged(own)
  assert [(step, looks) for step, looks, _ in found] == [(20, 1), (40, 2), (60, 3)]


@pytest.mark.slow
def test_it_works_in_a_population_and_in_two_processes(own, tmp_path):
  run_own(tmp_path / 'many', '--cpu_devices=2', '--population=seed=0,1')
  both = ['--coordinator', f'localhost:{test_processes.free_port()}', '--num_processes=2']
  run_own(
    tmp_path / 'two', '--cpu_devices=1', processes=[[*both, f'--process_id={i}'] for i in range(2)]
  )
  expected = logged(own)
  for folder in (tmp_path / 'many' / 'seed=0', tmp_path / 'two'):
    found = logged(folder)
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    np.testing.assert_allclose([one[2] for one in found], [one[2] for one in expected], atol=1e-4)
  assert logged(tmp_path / 'many' / 'seed=1') != logged(tmp_path / 'many' / 'seed=0')


# The look itself, at a program of one step.


@pytest.fixture(scope='module')
def look(tmp_path_factory):
  made = tiny.images(callbacks=[sample_grid(10)])
  data, state, _ = tiny.start(made)
  run = Run(
    experiment=made, data=data, config=None, source=pathlib.Path(__file__), folder=tmp_path_factory.mktemp('look'),
    used=[], record={'num_steps': 40},
  )  # fmt: skip
  run.position = Position(10, 10)
  program = tiny.single(made, data, state)
  tiny.dispatch(program)
  return LookAtRun(run, 0, program, row={'loss': 1.0}, recomputed=False)


def test_parameters_and_averages_are_the_state_s_on_the_host(look):
  state = devices.to_host(look._program.get(0))
  ema = look.experiment.averages['ema'].read(state.averages['ema'])
  for found in (look.parameters(), look.parameters('ema')):
    for path, leaf in tiny.leaves(found).items():
      assert isinstance(leaf, np.ndarray)
      np.testing.assert_array_equal(leaf, tiny.leaves(ema)[path])
  assert any((tiny.leaves(ema)[p] != leaf).any() for p, leaf in tiny.leaves(state.params).items())


def test_the_averages_are_those_of_its_own_run_among_several(look):
  state = look._program.get(0)
  other = state._replace(averages=jax.tree.map(lambda leaf: leaf + 1, state.averages))

  class Two:
    get = staticmethod((state, other).__getitem__)

  first, second = (
    LookAtRun(look._run, k, Two, row={}, recomputed=True).parameters('ema') for k in (0, 1)
  )
  for path, leaf in tiny.leaves(first).items():
    np.testing.assert_array_equal(tiny.leaves(second)[path], leaf + 1)


def test_the_denoiser_is_the_network_with_the_evaluation_parameters(look):
  made, label = look.experiment, np.array([3, -1])
  z, t = (
    jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32),
    jnp.full(2, 0.4),
  )
  parameters = look.parameters()
  marginal = gaussian.bind(made.diffusion, parameters.schedule).marginal(t)
  inputs, noise = made.diffusion.parameterization.encode(z, marginal)
  told = Conditioning(jnp.asarray(label), jnp.zeros((2, 0)))
  output, _ = made.model.apply({'params': parameters.network}, inputs, noise, told)
  expected = made.diffusion.parameterization.decode(output, z, marginal)
  np.testing.assert_allclose(look.denoiser(label)(z, t).eps, expected.eps, rtol=1e-5, atol=1e-6)


def test_samples_are_the_first_of_the_run_s_of_the_classes_in_turn(look):
  three, five = look.samples(3), look.samples(5)
  np.testing.assert_array_equal(five[:3], three)
  weights = states.weights(look.experiment, look._program.get(0))
  whole = look._run.sample(weights, np.arange(5, dtype=np.int32), np.arange(5))
  np.testing.assert_array_equal(five, whole)
  assert five.dtype == np.uint8


def test_once_is_kept_by_the_run_for_later_looks(look):
  made = []
  later = LookAtRun(look._run, 0, look._program, row={}, recomputed=True)
  assert look.once('a', lambda: made.append(1) or 7) == later.once('a', lambda: made.append(1)) == 7
  assert made == [1]


def test_a_picture_lies_in_the_run_s_folder(look, monkeypatch):
  (grid,), shown = look.experiment.callbacks, []
  draw = looks.picture
  monkeypatch.setattr(looks, 'picture', lambda *given: [shown.append(given), draw(*given)])
  assert grid.update({}, look)[0] == {}
  assert [path.name for path in (look.folder / 'samples').iterdir()] == ['step_00000010.png']
  ((dataset, reference, drawn, _, title),) = shown
  assert (dataset.class_names, title) == (look.data.dataset.class_names, 'step 10')
  np.testing.assert_array_equal(reference, look.data.dataset.x[look.data.split.validation])
  np.testing.assert_array_equal(drawn, look.samples(len(drawn)))
