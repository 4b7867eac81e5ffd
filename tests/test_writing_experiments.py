"""docs/WRITING_EXPERIMENTS.md does what it says: every block of it is run, in order, as a newcomer would."""

import collections
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.types import Batch, Context, Prediction

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'WRITING_EXPERIMENTS.md'
PROGRAMS = {
  'bash': ['bash', '-euo', 'pipefail'],
  'python': [sys.executable],
  'diff': ['git', 'apply'],
}


def blocks(text):
  """(language, content) of every fenced block, in order."""
  fenced = re.findall(r'^```(.*)\n((?:(?!```).*\n)*)```$', text, re.M)
  assert text.count('```') == 2 * len(fenced), 'a fence is not closed'
  return fenced


def environment(folder):
  """As in a checkout: `experiments` from the folder, `diffusion` from the repository, `python` is this one."""
  shim = folder / 'bin' / 'python'
  shim.parent.mkdir()
  shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
  shim.chmod(0o755)
  # A start of an experiment with a batch of 16 takes one device; with as many, the page's Python finds the sampler
  # that a start has compiled already.
  return os.environ | {
    'PATH': f'{shim.parent}{os.pathsep}{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # programs that run for milliseconds: compile them fast
    'GIT_CEILING_DIRECTORIES': str(folder.parent),
  }


def follow(page, folder):
  """Runs the blocks in the folder, beside a copy of `experiments/`; returns what each printed."""
  ignore = shutil.ignore_patterns('__pycache__')
  shutil.copytree(ROOT / 'experiments', folder / 'experiments', ignore=ignore)
  env, printed = environment(folder), []
  for language, content in page:
    program = PROGRAMS[language]  # a block of another language is one that nothing checks
    (folder / 'block').write_text(content)
    done = subprocess.run(
      [*program, 'block'], cwd=folder, env=env, stdin=subprocess.DEVNULL,
      capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f'```{language}\n{content}```\n{done.stdout}{done.stderr}'
    printed.append(done.stdout)
  return printed


def module(path):
  spec = importlib.util.spec_from_file_location(f'page_{path.stem}', path)
  loaded = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = loaded
  spec.loader.exec_module(loaded)
  return loaded


def test_the_page_has_all_kinds_of_blocks():
  count = collections.Counter(language for language, _ in blocks(PAGE.read_text()))
  assert count == {'bash': 4, 'python': 2, 'diff': 2}


def test_the_weight_of_the_page_weighs_the_loss(tmp_path):
  """The copy's loss over the original's (uniform on v) is the bell, at every noise level."""
  page = blocks(PAGE.read_text())
  last = max(i for i, (language, _) in enumerate(page) if language == 'diff')
  follow(page[: last + 1], tmp_path)
  log_snr = np.array([-9.0, -2.0, 0.0, 1.0, 7.0], np.float32)
  random = np.random.default_rng(0)
  x, eps, guess = (jnp.asarray(random.normal(size=(5, 8, 8, 1)), jnp.float32) for _ in range(3))
  context = Context(
    params=None, batch=Batch(x, None, None, None), eps=eps, z=None, t=None,
    log_snr=jnp.asarray(log_snr), slope=None, marginal=None, prediction=Prediction(guess, guess),
    predict=None, keys=None,
  )  # fmt: skip

  def loss(name, **changes):
    made = module(tmp_path / 'experiments' / f'{name}.py')
    ((factor, term),) = made.build(made.Config(**changes)).terms.values()
    return factor * np.asarray(term.apply((), context))

  bell = np.exp(-((log_snr - 1.0) ** 2) / (2 * 3.0**2))
  np.testing.assert_allclose(loss('mine', center=1.0, spread=3.0) / loss('digits'), bell, rtol=1e-5)


@pytest.mark.slow
def test_the_run_of_the_page_is_whole(tmp_path):
  printed = follow(blocks(PAGE.read_text()), tmp_path)
  run = tmp_path / 'runs' / 'mine'
  record = json.loads((run / 'run.json').read_text())
  assert (record['status'], record['step'], len(record['starts'])) == ('finished', 30, 2)
  assert record['config']['spread'] == 2
  assert record['data']['name'] == 'pictures'
  assert sum(record['data']['examples'].values()) == 1797
  assert record['data']['class_names'] == list('0123456789')
  assert 'bell loss weight' in [one['name'] for one in record['techniques']]
  assert 'bell loss weight' in (run / 'report.md').read_text()
  steps = [json.loads(line)['step'] for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert steps == sorted(set(steps))
  assert steps[-1] == 30
  for name in ('samples', 'curves', 'nearest', 'samples_seed1'):
    assert (run / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  assert (run / 'samples.png').read_bytes() != (run / 'samples_seed1.png').read_bytes()
  assert '| total |' in ''.join(printed)  # of the dry run
  assert re.search(r'^\d+ \(3, 8, 8, 1\) uint8$', printed[-1], re.M)
