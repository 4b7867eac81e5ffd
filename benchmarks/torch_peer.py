"""The networks of `models/unet.py` and `models/dit.py` and their training step in PyTorch, as peers to measure against.

Only the processes of the benchmarks that ask for PyTorch import this file; `pip install -e '.[peers]'`. A test gives
both sides the same weights and compares their outputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sizes import Size, Transformer


def groups(channels: int) -> int:
  """As `normalization.groups`."""
  limit = max(1, min(32, channels // 4))
  return max(g for g in range(1, limit + 1) if channels % g == 0)


def norm(channels: int) -> nn.GroupNorm:
  """Group normalization with Flax's epsilon."""
  return nn.GroupNorm(groups(channels), channels, eps=1e-6)


class Block(nn.Module):
  """norm, SiLU, conv, + embedding, norm, SiLU, dropout, conv; added to the input."""

  def __init__(self, before: int, after: int, embedding: int, dropout: float):
    super().__init__()
    self.norm_in, self.norm_out = norm(before), norm(after)
    self.conv_in = nn.Conv2d(before, after, 3, padding=1)
    self.embedding = nn.Linear(embedding, after)
    self.dropout = nn.Dropout(dropout)
    self.conv_out = nn.Conv2d(after, after, 3, padding=1)
    self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

  def forward(self, x, embedding):
    """x[B, C, H, W], embedding[B, E]."""
    h = self.conv_in(F.silu(self.norm_in(x)))
    h = h + self.embedding(embedding)[:, :, None, None]
    return self.shortcut(x) + self.conv_out(self.dropout(F.silu(self.norm_out(h))))


class Attention(nn.Module):
  """Single-head self-attention over the pixels; keys without a bias."""

  def __init__(self, channels: int):
    super().__init__()
    self.norm = norm(channels)
    self.query, self.value, self.out = (nn.Linear(channels, channels) for _ in range(3))
    self.key = nn.Linear(channels, channels, bias=False)

  def forward(self, x):
    """x[B, C, H, W]."""
    flat = self.norm(x).flatten(2).transpose(1, 2)
    # With an axis of one head: without it PyTorch leaves its fused kernels, and bfloat16, for float32 products.
    heads = (part(flat)[:, None] for part in (self.query, self.key, self.value))
    h = F.scaled_dot_product_attention(*heads)[:, 0]
    return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class Embedding(nn.Module):
  """The noise level and the label as one vector; see `models/embeddings.py`."""

  def __init__(self, features: int, num_classes: int):
    super().__init__()
    self.fourier = features // 4
    self.time_in, self.time_out = nn.Linear(self.fourier, features), nn.Linear(features, features)
    self.table = nn.Embedding(num_classes + 1, features) if num_classes else None

  def forward(self, noise, label):
    """c_noise[B], label[B] -> [B, features]."""
    frequencies = torch.logspace(-4, 4, self.fourier // 2, base=2.0, device=noise.device)
    angle = 2 * torch.pi * noise[:, None] * frequencies
    hidden = self.time_in(torch.cat([angle.cos(), angle.sin()], dim=1))
    embedding = self.time_out(F.silu(hidden))
    if self.table is not None:
      embedding = embedding + self.table(label % self.table.num_embeddings)
    return F.silu(embedding)


class UNet(nn.Module):
  """See `models/unet.py`."""

  def __init__(self, size: Size):
    super().__init__()
    width, levels, embedding = size.width, len(size.multipliers), 4 * size.width
    self.size, self.embed = size, Embedding(embedding, size.num_classes)
    self.stem = nn.Conv2d(size.shape[2], width, 3, padding=1)
    self.blocks, self.attend, self.downs, self.ups = (nn.ModuleList() for _ in range(4))
    kept, channels, side = [width], width, size.shape[0]

    def block(level: int, before: int, attend: bool) -> int:
      after = width * size.multipliers[level]
      self.blocks.append(Block(before, after, embedding, size.dropout))
      self.attend.append(Attention(after) if attend else nn.Identity())
      return after

    for level in range(levels):
      for _ in range(size.blocks):
        channels = block(level, channels, side in size.attention)
        kept.append(channels)
      if level + 1 < levels:
        self.downs.append(nn.Conv2d(channels, channels, 3, stride=2))
        kept.append(channels)
        side //= 2
    channels = block(levels - 1, channels, True)
    channels = block(levels - 1, channels, False)
    for level in reversed(range(levels)):
      for _ in range(size.blocks + 1):
        channels = block(level, channels + kept.pop(), side in size.attention)
      if level:
        self.ups.append(nn.Conv2d(channels, channels, 3, padding=1))
        side *= 2
    self.norm = norm(channels)
    self.output = nn.Conv2d(channels, size.shape[2], 3, padding=1)
    nn.init.zeros_(self.output.weight)
    nn.init.zeros_(self.output.bias)

  def forward(self, x, noise, label):
    """x[B, C, H, W], c_noise[B], label[B] -> [B, C, H, W]."""
    embedding = self.embed(noise, label)
    blocks = iter(zip(self.blocks, self.attend, strict=True))

    def block(h):
      residual, attention = next(blocks)
      return attention(residual(h, embedding))

    h, levels = self.stem(x), len(self.size.multipliers)
    kept = [h]
    for level in range(levels):
      for _ in range(self.size.blocks):
        h = block(h)
        kept.append(h)
      if level + 1 < levels:
        h = self.downs[level](F.pad(h, (0, 1, 0, 1)))
        kept.append(h)
    h = block(block(h))
    for level in reversed(range(levels)):
      for _ in range(self.size.blocks + 1):
        h = block(torch.cat([h, kept.pop()], dim=1))
      if level:
        h = self.ups[levels - 1 - level](F.interpolate(h, scale_factor=2.0, mode='nearest'))
    return self.output(F.silu(self.norm(h)))


def places(rows: int, columns: int, features: int) -> torch.Tensor:
  """Fixed embeddings of a grid's places [rows * columns, features]; see `models/dit.py`."""
  quarter = features // 4
  frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

  def axis(size: int) -> torch.Tensor:
    angle = torch.arange(size)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)

  down = axis(rows)[:, None].expand(rows, columns, -1)
  across = axis(columns)[None].expand(rows, columns, -1)
  return torch.cat([down, across], dim=2).reshape(rows * columns, features).float()


class TransformerBlock(nn.Module):
  """Attention, then an MLP, each on a normalized input that the conditioning shifts and scales, and behind its gate."""

  def __init__(self, size: Transformer):
    super().__init__()
    c = size.width
    self.heads = size.heads
    self.norm = nn.LayerNorm(c, eps=1e-6, elementwise_affine=False)
    self.modulation = nn.Linear(c, 6 * c)
    self.query, self.value, self.out = (nn.Linear(c, c) for _ in range(3))
    self.key = nn.Linear(c, c, bias=False)
    self.mlp_in, self.mlp_out = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
    self.dropout = nn.Dropout(size.dropout)

  def forward(self, x, embedding):
    """x[B, N, C], embedding[B, C]."""
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(embedding)[:, None].chunk(
      6, dim=-1
    )
    h = self.norm(x) * (1 + scale) + shift
    query, key, value = (
      part(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
      for part in (self.query, self.key, self.value)
    )
    h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    x = x + gate * self.out(h)
    h = F.gelu(self.mlp_in(self.norm(x) * (1 + scale_mlp) + shift_mlp))
    return x + gate_mlp * self.mlp_out(self.dropout(h))


class DiT(nn.Module):
  """See `models/dit.py`."""

  def __init__(self, size: Transformer):
    super().__init__()
    height, width, channels = size.shape
    self.size, self.embed = size, Embedding(size.width, size.num_classes)
    inside = size.patch**2 * channels
    self.stem = nn.Linear(inside, size.width)
    self.blocks = nn.ModuleList(TransformerBlock(size) for _ in range(size.depth))
    self.norm = nn.LayerNorm(size.width, eps=1e-6, elementwise_affine=False)
    self.modulation = nn.Linear(size.width, 2 * size.width)
    self.output = nn.Linear(size.width, inside)
    table = places(height // size.patch, width // size.patch, size.width)
    self.register_buffer('places', table)

  def forward(self, x, noise, label):
    """x[B, C, H, W], c_noise[B], label[B] -> [B, C, H, W]."""
    b, channels, height, width = x.shape
    p = self.size.patch
    embedding = self.embed(noise, label)
    h = x.reshape(b, channels, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
    h = self.stem(h.reshape(b, -1, p * p * channels))
    h = h + self.places.to(h.dtype)
    for block in self.blocks:
      h = block(h, embedding)
    shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
    h = self.output(self.norm(h) * (1 + scale) + shift)
    h = h.reshape(b, height // p, width // p, p, p, channels).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(x.shape)


def network(size: Size | Transformer) -> nn.Module:
  """The peer of a size."""
  return DiT(size) if isinstance(size, Transformer) else UNet(size)


def make_step(
  network: nn.Module, size: Size | Transformer, device: str, images: torch.Tensor, amp: bool
):
  """A full training step: gather, noise, forward with dropout, backward, clip, AdamW, EMA. () -> loss.

  `network(x, c_noise, label)` predicts v of the cosine process, as the experiments do.
  """
  parameters = list(network.parameters())
  optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=1e-2, fused=True)
  average = [p.detach().clone() for p in parameters]
  label = torch.zeros(size.batch, dtype=torch.long, device=device)
  layout = torch.contiguous_format if device == 'cpu' else torch.channels_last
  network.train()

  def step():
    index = torch.randint(len(images), (size.batch,), device=device)
    x = (images[index].to(torch.float32) / 127.5 - 1).contiguous(memory_format=layout)
    t = torch.rand(size.batch, device=device)
    alpha, sigma = torch.cos(torch.pi * t / 2), torch.sin(torch.pi * t / 2).clamp_min(1e-4)
    eps = torch.randn_like(x)
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    with torch.autocast(device, torch.bfloat16, enabled=amp):
      output = network(a * x + s * eps, torch.log(sigma / alpha.clamp_min(1e-4)) / 4, label)
    loss = ((output.float() - (a * eps - s * x)) ** 2).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, parameters, 1e-3)
    return loss

  return step


def make_sample(network: nn.Module, size: Size | Transformer, device: str, steps: int, amp: bool):
  """Deterministic DDIM under the cosine process: () -> images [batch, C, H, W]."""
  network.eval()
  shape = (size.batch, size.shape[2], *size.shape[:2])
  label = torch.zeros(size.batch, dtype=torch.long, device=device)
  times = torch.linspace(1 - 1e-3, 1e-3, steps + 1)
  alpha, sigma = torch.cos(torch.pi * times / 2), torch.sin(torch.pi * times / 2)
  # On the device once: a copy in the loop would wait for the device.
  noises = (torch.log(sigma / alpha) / 4)[:, None].expand(-1, size.batch).contiguous().to(device)
  marginals = list(zip(alpha.tolist(), sigma.tolist(), strict=True))

  @torch.no_grad()
  def sample():
    z = torch.randn(shape, device=device)
    for (a, b), (c, d), noise in zip(marginals, marginals[1:], noises, strict=False):
      with torch.autocast(device, torch.bfloat16, enabled=amp):
        v = network(z, noise, label).float()
      x0 = (a * z - b * v).clamp(-1, 1)
      z = c * x0 + d * (z - a * x0) / b
    return z

  return sample


def _put(module: nn.Module, given: Mapping[str, Any]) -> None:
  kernel = torch.tensor(given['kernel'] if 'kernel' in given else given['scale'])
  if kernel.ndim == 4:
    kernel = kernel.permute(3, 2, 0, 1)
  elif kernel.ndim == 2:
    kernel = kernel.T
  if module.weight.ndim == 4 and kernel.ndim == 2:  # a Dense layer as a 1x1 convolution
    kernel = kernel[:, :, None, None]
  module.weight.data.copy_(kernel)
  if 'bias' in given:
    module.bias.data.copy_(torch.tensor(given['bias']))


def load(network: UNet | DiT, params: Mapping[str, Any]) -> None:
  """Copies the parameters of the Flax network into this one.

  Args:
    network: of the same size.
    params: the Flax network's parameters as NumPy arrays.
  """
  embedding = params['ConditioningEmbedding_0']
  _put(network.embed.time_in, embedding['Dense_0'])
  _put(network.embed.time_out, embedding['Dense_1'])
  if network.embed.table is not None:
    network.embed.table.weight.data.copy_(torch.tensor(embedding['Embed_0']['embedding']))
  for name in ('stem', 'output'):
    _put(getattr(network, name), params[name])
  (_load_transformer if isinstance(network, DiT) else _load_unet)(network, params)


def _load_transformer(network: DiT, params: Mapping[str, Any]) -> None:
  _put(network.modulation, params['modulation'])
  for i, block in enumerate(network.blocks):
    given = params[f'Block_{i}']
    for name in ('modulation', 'mlp_in', 'mlp_out'):
      _put(getattr(block, name), given[name])
    for name in ('query', 'key', 'value', 'out'):
      _put(getattr(block, name), given['attention'][name])


def _load_unet(network: UNet, params: Mapping[str, Any]) -> None:
  _put(network.norm, params['GroupNorm_0'])
  attention = 0
  for i, (block, attend) in enumerate(zip(network.blocks, network.attend, strict=True)):
    given = params[f'ResidualBlock_{i}']
    _put(block.norm_in, given['GroupNorm_0'])
    _put(block.norm_out, given['GroupNorm_1'])
    for name in ('conv_in', 'embedding', 'conv_out', *(['shortcut'] * ('shortcut' in given))):
      _put(getattr(block, name), given[name])
    if isinstance(attend, Attention):
      given = params[f'Attention_{attention}']
      attention += 1
      _put(attend.norm, given['GroupNorm_0'])
      for name in ('query', 'key', 'value', 'out'):
        _put(getattr(attend, name), given[name])
  levels = len(network.size.multipliers)
  for i, down in enumerate(network.downs):
    _put(down, params[f'down_{i}'])
  for i, up in enumerate(network.ups):
    _put(up, params[f'up_{levels - 1 - i}'])


def flops(function, *arguments) -> int:
  """Floating-point operations of matrix products and convolutions in one call."""
  with FlopCounterMode(display=False) as counter:
    function(*arguments)
  return counter.get_total_flops()
