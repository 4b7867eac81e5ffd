"""The training step against the same one in PyTorch and another project's network, or against another checkout's.

Run     pip install -e '.[peers]'
        python -m benchmarks.step --size=digits --device=cpu
        python -m benchmarks.step --size=mixture --members=16 --against=../before
        python -m benchmarks.step --size=digits --start --against=../before

A full step: batch from memory, noise, forward with dropout, backward, clipping, AdamW, EMA. Contenders are processes of
their own, measured in turn; rounds in which other programs ran are thrown away. PyTorch runs eagerly with its default
threads, compiled if --compiled. The mixture and populations have no peers.

With --against, the root of another commit's working tree, there are two contenders and no peers: this project's step
with the package and `benchmarks/engine.py` from there (old), and from here (new). With --start they are processes of
the smoke run of the size's experiment, from their start to the first row of metrics, compiled programs in the cache.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import checkouts, contenders, contest, sizes
from benchmarks.contest import Contender

SIZE = flags.DEFINE_enum('size', 'digits', [*sizes.SIZES, 'mixture'], 'Network and batch.')
BATCH = flags.DEFINE_integer('batch', 0, "Images in a batch; 0: the size's own.")
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Quiet rounds.')
NOISE = flags.DEFINE_float('noise', 0.1, 'Cores that other programs may take in a quiet round.')
DEVICE = flags.DEFINE_enum('device', 'cpu', ['cpu', 'cuda'], 'Where PyTorch runs.')
NARROW = flags.DEFINE_boolean('bfloat16', False, 'Compute in bfloat16, all of them.')
COMPILED = flags.DEFINE_boolean('compiled', False, 'PyTorch compiled, too.')
OTHER = flags.DEFINE_boolean('other', True, "denoising-diffusion-pytorch's network, too.")
PER_DISPATCH = flags.DEFINE_multi_integer(
  'per_dispatch', [0], "Steps in one of our dispatches; 0: as the size's experiment."
)
CPU_DEVICES = flags.DEFINE_multi_integer(
  'cpu_devices', [0], 'Virtual CPU devices; 0: as runs choose.'
)
MEMBERS = flags.DEFINE_integer('members', 0, 'Seeds trained as one program; 0: one run.', 0)
AGAINST = flags.DEFINE_string('against', '', "Root of another commit's working tree.")
START = flags.DEFINE_boolean('start', False, 'Time starts of processes in place of steps.')


def sides(roots: dict[str, pathlib.Path], label: str, make: Callable[..., Any], *arguments: Any):
  """This project's contender, by its name: of each checkout, or of this one alone."""
  if not roots:
    return {f'ours, {label}': Contender(make, arguments)}
  return {
    f'{side}, {label}': Contender(checkouts.made_in, (str(root), make, *arguments))
    for side, root in roots.items()
  }


def ours(roots: dict[str, pathlib.Path], size: sizes.Size | None) -> dict[str, Contender]:
  """This project's step in each number of steps a dispatch and devices; size None is the mixture's."""
  usual, found = sizes.STEPS_PER_DISPATCH if size else sizes.MIXTURE_PER_DISPATCH, {}
  for devices in CPU_DEVICES.value:
    for k in (given or usual for given in PER_DISPATCH.value):
      label = f'{k} a dispatch' + (f', {devices} devices' if devices else '')
      if size:
        options = contenders.step, size, k, devices, NARROW.value, MEMBERS.value
      else:
        options = contenders.mixture_step, k, devices, MEMBERS.value
      found |= sides(roots, label, *options)
  return found


def peers(size: sizes.Size) -> dict[str, Contender]:
  """Those in PyTorch."""
  arguments = size, DEVICE.value, False, NARROW.value
  found = {'PyTorch': Contender(contenders.pytorch_step, arguments)}
  if COMPILED.value:
    compiled = size, DEVICE.value, True, NARROW.value
    found['PyTorch compiled'] = Contender(contenders.pytorch_step, compiled)
  if OTHER.value:
    found['denoising-diffusion-pytorch'] = Contender(contenders.lucidrains_step, arguments)
  return found


def starts(roots: dict[str, pathlib.Path]) -> dict[str, Contender]:
  """Starts of processes."""
  return {
    f'{side}, start': Contender(contenders.first_row, (str(root), SIZE.value))
    for side, root in (roots or {'ours': checkouts.HERE}).items()
  }


def report(rounds: contest.Rounds, unit: str) -> None:
  """Prints the table, and what is compared with what."""
  names = list(rounds.speed)
  base = 'PyTorch' if 'PyTorch' in names else names[0]
  print(contest.table(rounds, base, unit, ('parameters', 'MFLOP/image')))
  for name in names:
    if START.value:
      seconds = 1 / rounds.speed[name]
      print(f'{name}: {np.median(seconds):.2f} s [{seconds.min():.2f}, {seconds.max():.2f}]')
    if name.startswith('new'):
      print(contest.advantage(rounds, name, f'old{name[3:]}'))
  if 'denoising-diffusion-pytorch' in names:
    print(contest.per_operation(rounds, 'denoising-diffusion-pytorch', 'MFLOP/image'))


def main(_) -> None:
  """Measures and prints."""
  try:
    roots = {'old': checkouts.find(AGAINST.value), 'new': checkouts.HERE} if AGAINST.value else {}
    if SIZE.value == 'mixture' and (BATCH.value or NARROW.value):
      raise ValueError('--batch and --bfloat16 are for networks of images, and the size is mixture')
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    raise SystemExit(2) from None
  size = sizes.SIZES.get(SIZE.value)
  size = size and size._replace(batch=BATCH.value or size.batch)
  found = starts(roots) if START.value else ours(roots, size)
  if size and not (roots or START.value or MEMBERS.value):
    found = peers(size) | found
  rounds = contest.hold(found, ROUNDS.value, noise=NOISE.value)
  report(rounds, 'starts' if START.value else 'images')
  members = f', {MEMBERS.value} members' if MEMBERS.value else ''
  commits = ', '.join(f'{side} {checkouts.commit(root)}' for side, root in roots.items())
  print(
    f'{SIZE.value}, {size or "batch 256"}{members}\n{contest.machine()}, jax {jax.__version__}, '
    f'{commits or f"commit {checkouts.commit(checkouts.HERE)}"}'
  )


if __name__ == '__main__':
  app.run(main)
