"""What comes after training, tried before it: every kind of data has a report, and what fails is a line of it."""

import json
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from diffusion.data import pipeline, sources
from diffusion.evaluation import memorization
from diffusion.models import mlp, unet
from diffusion.runs import rehearsal, showing
from diffusion.runs.attempts import attempt
from diffusion.runs.run import prepare
from diffusion.sampling.plan import Sampling
from diffusion.training import callbacks
from diffusion.training import state as states
from tests.training import tiny

KINDS = {'one number': (1,), 'vectors': (3,), 'series': (24, 2), 'film': (4, 8, 8, 3)}


def experiment(x, **changes):
  levels = 256 if x.dtype == np.uint8 else None
  return tiny.experiment(
    data=sources.arrays('mine', x, levels=levels), model=mlp.mlp(8, 1), normalization=None,
    augment=tiny.augment.chain(), sampling=Sampling(steps=3, per_class=9),
  )._replace(**changes)  # fmt: skip


def floats(shape):
  return np.random.default_rng(0).normal(5000, 1000, (40, *shape)).astype(np.float32)


def levels(*shape):
  return np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8)


def run_of(made, folder=None):
  return prepare(lambda _: made, {}, 'mine', folder)


def shapes_of(run):
  init = states.make_init(run.experiment, run.data.example, run.data.units)
  return jax.eval_shape(init, jnp.uint32(0), run.data.example)


@pytest.mark.parametrize(
  'x',
  [*map(floats, KINDS.values()), levels(8, 8, 2), levels(5, 7, 1)],
  ids=[*KINDS, 'two channels', 'gray'],
)
def test_every_kind_of_data_is_traced_and_has_pictures_and_a_report(x, monkeypatch, tmp_path):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  seen = []
  write = showing.write_run_report

  def written(run, folder, *more):
    path = write(run, folder, *more)
    seen.extend(one.name for one in folder.iterdir())
    return path

  monkeypatch.setattr(showing, 'write_run_report', written)
  run = run_of(experiment(x))
  rehearsal.trace_sampling(run, shapes_of(run))
  compiled = []  # seconds of each program: they would cost a start more than pictures do

  def heard(event, seconds, **more):
    if 'backend_compile' in event:
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(heard)
  assert rehearsal.rehearse(run) == []
  assert not compiled
  jax.jit(lambda a: 3.7 * a)(x.size)
  assert len(compiled) == 1
  jax.monitoring.unregister_event_duration_listener(heard)
  images = x.dtype == np.uint8
  wanted = {'samples.png', 'curves.png', 'report.md', 'references.bib'}
  assert set(seen) == wanted | ({'nearest.png'} if images else set())
  assert not list(tmp_path.iterdir())


def test_what_a_rehearsal_shows_is_of_the_data_s_kind_and_range():
  run = run_of(experiment(floats((3,)), normalization=pipeline.standardized()))
  found = rehearsal._random_samples(run)
  assert (found.shape, found.dtype) == ((9, 3), np.float32)
  assert 4000 < found.mean() < 6000 and 500 < found.std() < 2000
  few = np.random.default_rng(0).integers(0, 4, (40, 5, 7, 1), np.uint8)
  made = experiment(few)._replace(data=sources.arrays('mine', few, levels=4))
  found = rehearsal._random_samples(run_of(made))
  assert (found.shape[1:], found.dtype) == ((5, 7, 1), np.uint8)
  assert set(found.ravel()) == {0, 1, 2, 3}


def narrow(model):
  """A network that returns one number for all, which broadcasts wherever it is used."""

  def apply(*given, **more):
    output, statistics = model.apply(*given, **more)
    return output[..., :1], statistics

  return model._replace(apply=apply)


def of_one_row(model):
  """A network that adds up axes that fit a single row alone."""

  def apply(variables, z, noise, conditioning, **more):
    output, statistics = model.apply(variables, z, noise, conditioning, **more)
    return output + noise.reshape(1, 1, -1), statistics

  return model._replace(apply=apply)


@pytest.mark.parametrize(
  ('made', 'says'),
  [
    (lambda: experiment(floats((4,)), model=narrow(mlp.mlp(8, 1))), r'given, \[2, 4\], and returns \[2, 1\]'),
    (lambda: experiment(floats((3, 4)), model=of_one_row(mlp.mlp(8, 1))), r'take examples of shape \[3, 4\]'),
  ],
)  # fmt: skip
def test_a_network_that_does_not_take_the_data_is_named_before_training(made, says):
  run = run_of(made())
  with pytest.raises(ValueError, match=says):
    rehearsal.trace_sampling(run, shapes_of(run))


def test_a_network_for_images_refuses_a_series_before_anything_is_written(tmp_path):
  made = experiment(floats((24, 2)), model=unet.unet(8, (1, 2), 1))
  with pytest.raises(ValueError, match=r'a U-Net of 2 levels needs images'):
    diffusion.train(made, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_picture_that_fails_is_a_line_and_the_others_are_drawn(tmp_path, capsys):
  run = run_of(experiment(levels(8, 8, 1)))
  nearest = np.zeros(9, np.int32), np.full(9, np.nan)
  drawn = showing.sampling_record(run.experiment, (8, 8, 1), 1, 0)
  shown = showing.Shown(samples=levels(8, 8, 1)[:9], nearest=nearest, rows=[], sampling=drawn)
  found = showing.draw_pictures(run, tmp_path, shown)
  assert [(one.name, one.meaning[:40]) for one in found] == [
    ('curves.png failed', 'none of the 0 rows has a value to draw'),
    ('nearest.png failed', 'ratios must be 9 numbers, got array([nan'),
  ]
  assert {one.name for one in tmp_path.iterdir()} == {'samples.png'}
  assert capsys.readouterr().err.count('failed') == 2


@pytest.mark.parametrize('error', [ValueError, KeyError, ZeroDivisionError, AttributeError])
def test_whatever_fails_is_one_line_but_a_full_disk_and_an_interruption_end_the_run(error, capsys):
  def fails(error):
    raise error('why\nnot')

  assert attempt('it', lambda: 3) == (3, [])
  made, (line,) = attempt('it', lambda: fails(error))
  assert made is None and line.name == 'it failed' and 'why' in line.meaning
  assert '\n' not in line.meaning
  said = capsys.readouterr().err
  assert f'it failed: {line.meaning}\n' in said
  assert ('Traceback' in said) == (error is not ValueError)  # which somebody foresaw
  for other in (OSError, KeyboardInterrupt):
    with pytest.raises(other):
      attempt('it', lambda other=other: fails(other))


def test_a_run_whose_losses_are_not_finite_and_which_logs_nothing_has_a_report_that_says_so(
  tmp_path, capsys
):
  """All that can fail at once: no rows, no finite loss, no finite sample."""
  made = experiment(
    floats((3,)), num_steps=2, log_every=4, validate_every=4, batch_size=8,
    callbacks=[callbacks.checkpoint()], metrics=[memorization.nearest_neighbor_ratio()],
  )  # fmt: skip

  def apply(*given, model=made.model, **more):
    output, statistics = model.apply(*given, **more)
    return output * jnp.nan, statistics

  run = diffusion.train(made._replace(model=made.model._replace(apply=apply)), tmp_path / 'run')
  assert run.status == 'finished'
  assert re.search(
    r'^evaluation 4/4 after \d+ s: pictures and report, the last$',
    capsys.readouterr().err,
    re.MULTILINE,
  )
  report = (tmp_path / 'run' / 'report.md').read_text()
  for name in ('losses', 'samples', 'curves.png'):
    assert f'| {name} failed |' in report
  record = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert 'samples failed' in record['results'] and record['evaluations'][0]['samples'] == 0
  assert not list((tmp_path / 'run').glob('samples*'))
