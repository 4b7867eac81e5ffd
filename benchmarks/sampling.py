"""DDIM sampling in 25 steps against the same sampler of the same network in PyTorch.

Run     pip install -e '.[peers]'
        python -m benchmarks.sampling --size=digits --device=cpu

Contenders are processes of their own, measured in turn, as in `benchmarks.step`.
"""

import jax
from absl import app, flags

from benchmarks import contenders, contest, sizes
from diffusion import checkout

SIZE = flags.DEFINE_enum('size', 'digits', list(sizes.SIZES), 'Network and batch.')
BATCH = flags.DEFINE_integer('batch', 0, "Images drawn at a time; 0: the size's own.")
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Quiet rounds.')
DEVICE = flags.DEFINE_enum('device', 'cpu', ['cpu', 'cuda'], 'Where PyTorch runs.')
NARROW = flags.DEFINE_boolean('bfloat16', False, 'Compute in bfloat16, both of them.')
COMPILED = flags.DEFINE_boolean('compiled', False, 'PyTorch compiled, too.')


def main(_) -> None:
  """Measures and prints."""
  size = sizes.SIZES[SIZE.value]
  size = size._replace(batch=BATCH.value or size.batch)

  def peer(compiled: bool) -> contest.Contender:
    return contest.Contender(
      contenders.pytorch_sample, (size, DEVICE.value, compiled, NARROW.value)
    )

  found = {
    'PyTorch': peer(False),
    'ours': contest.Contender(contenders.sample, (size, 0, NARROW.value)),
  }
  if COMPILED.value:
    found['PyTorch compiled'] = peer(True)
  rounds = contest.hold(found, ROUNDS.value)
  print(contest.table(rounds, 'PyTorch', 'images'))
  print(
    f'{SIZE.value}, {size}\n{contest.machine()}, jax {jax.__version__}, commit {checkout.code()["commit"]}'
  )


if __name__ == '__main__':
  app.run(main)
