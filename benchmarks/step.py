"""The training step against the same one in PyTorch, and against another project's network per operation.

Run     pip install -e '.[peers]'
        python -m benchmarks.step --size=digits --device=cpu

A full step: batch from memory, noise, forward with dropout, backward, clipping, AdamW, EMA. Contenders are processes of
their own, measured in turn; rounds in which other programs ran are thrown away. PyTorch runs eagerly with its default
threads, compiled if --compiled.
"""

import jax
from absl import app, flags

from benchmarks import contenders, contest, sizes
from diffusion import provenance

SIZE = flags.DEFINE_enum('size', 'digits', list(sizes.SIZES), 'Network and batch.')
BATCH = flags.DEFINE_integer('batch', 0, "Images in a batch; 0: the size's own.")
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Quiet rounds.')
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


def main(_) -> None:
  """Measures and prints."""
  size = sizes.SIZES[SIZE.value]
  size = size._replace(batch=BATCH.value or size.batch)
  torch_options = size, DEVICE.value
  found = {
    'PyTorch': contest.Contender(contenders.pytorch_step, (*torch_options, False, NARROW.value))
  }
  for devices in CPU_DEVICES.value:
    for k in (given or sizes.STEPS_PER_DISPATCH for given in PER_DISPATCH.value):
      name = f'ours, {k} a dispatch' + (f', {devices} devices' if devices else '')
      found[name] = contest.Contender(contenders.step, (size, k, devices, NARROW.value))
  if COMPILED.value:
    arguments = (*torch_options, True, NARROW.value)
    found['PyTorch compiled'] = contest.Contender(contenders.pytorch_step, arguments)
  if OTHER.value:
    arguments = (*torch_options, False, NARROW.value)
    found['denoising-diffusion-pytorch'] = contest.Contender(contenders.lucidrains_step, arguments)
  rounds = contest.hold(found, ROUNDS.value)
  print(contest.table(rounds, 'PyTorch', 'images', ('parameters', 'MFLOP/image')))
  if OTHER.value:
    print(contest.per_operation(rounds, 'denoising-diffusion-pytorch', 'MFLOP/image'))
  print(
    f'{SIZE.value}, {size}\n{contest.machine()}, jax {jax.__version__}, commit {provenance.code()["commit"]}'
  )


if __name__ == '__main__':
  app.run(main)
