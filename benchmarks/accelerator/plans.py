"""How large everything is that the accelerator's benchmark measures: in full, and as toys that a CPU can do."""

from typing import NamedTuple

from benchmarks.sizes import DIT_B, SIZES, Size, Transformer


class Plan(NamedTuple):
  """Sizes and durations.

  Attributes:
    digits, unet, float_unet, dit, mnist: networks and batches; `unet` in bfloat16, `float_unet` in TF32 and float32.
    per_dispatch: steps of a dispatch.
    samples, evaluations: of DDIM.
    mixture, mixture_width: members of its populations, and units of its network.
    members: of the digits' populations.
    seconds: that a speed is measured for.
    backend: of `torch.compile`.
    batches: of 128 rows that a round of feeding takes.
    rounds: of feeding.
    images: in files of noise.
    flags: of the experiments.
  """

  digits: Size | Transformer
  unet: Size
  float_unet: Size | Transformer
  dit: Transformer
  mnist: Size | Transformer
  per_dispatch: int
  samples: int
  evaluations: int
  mixture: tuple[int, ...]
  mixture_width: int
  members: tuple[int, ...]
  seconds: float
  backend: str
  batches: int
  rounds: int
  images: int
  flags: tuple[str, ...]


FULL = Plan(
  digits=SIZES['digits'], unet=SIZES['cifar10']._replace(batch=512),
  float_unet=SIZES['cifar10']._replace(batch=128), dit=DIT_B,
  mnist=SIZES['mnist']._replace(width=64, batch=128), per_dispatch=10, samples=256,
  evaluations=50, mixture=(1, 16, 4, 64), mixture_width=128, members=(1, 4, 16), seconds=4.0,
  backend='inductor', batches=100, rounds=3, images=4096, flags=(),
)  # fmt: skip
_DOT = Transformer(
  (4, 4, 1), 8, 1, 1, 2, 8, num_classes=10
)  # compiles in half the time of the least U-Net
TINY = Plan(
  digits=_DOT, unet=Size((4, 4, 1), 8, (1,), (), 8, num_classes=10, blocks=1), float_unet=_DOT, dit=_DOT, mnist=_DOT,
  per_dispatch=2, samples=8, evaluations=2, mixture=(1, 2), mixture_width=8, members=(1, 2),
  seconds=0.1, backend='eager', batches=4, rounds=1, images=256, flags=('--smoke',),
)  # fmt: skip
PLANS = {'full': FULL, 'tiny': TINY}
