"""Rows as text: a line for the terminal, and sections for docs/PERFORMANCE.md."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diffusion.reporting import tables
from diffusion.statistics import Interval, format_interval

_TITLES = {
  1: 'It works',
  2: 'Training step',
  3: 'Sampling',
  4: 'Populations',
  5: 'The main job',
  6: 'Feeding',
  7: 'A real run',
}


class Row(NamedTuple):
  """What was asked, and what became of it.

  Attributes:
    part, name: which.
    status: 'measured', 'failed', 'cut off' or 'left out'.
    why: where it was not measured, or not whole.
    seconds: that it took.
    found: numbers by name; None where there are none.
    call: the number of its call, for card and commit.
  """

  part: int
  name: str
  status: str
  why: str
  seconds: float
  found: dict[str, Any] | None
  call: int


def brief(found: dict[str, Any]) -> str:
  """The numbers of a row in one line; longer things are left to the file."""
  texts = []
  for name, value in found.items():
    if isinstance(value, float):
      texts.append(f'{name} {tables.number(value)}')
    elif isinstance(value, bool | int | str):
      texts.append(f'{name} {value}')
    elif isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], float):
      texts.append(f'{name} {" and ".join(tables.number(one, 7) for one in value)}')
    elif isinstance(value, list) and value and isinstance(value[0], float):
      texts.append(f'{name} {tables.number(value[0], 7)} to {tables.number(value[-1], 7)}')
    elif isinstance(value, dict) and 'images/s' in value:
      texts.append(f'{name}: {tables.number(value["images/s"])} images/s')
  return ', '.join(texts)


def line(row: Row) -> str:
  """What the terminal is told of a row."""
  said = brief(row.found) if row.found else ''
  status = '' if row.status == 'measured' else f'{row.status}: {row.why}'
  text = '; '.join(one for one in (status, said) if one)
  return f'{row.part} {row.name}: {text} ({row.seconds:.1f} s)'


def _gigabytes(found: dict[str, Any]) -> float | None:
  memory = found.get('peak memory')
  return memory and memory / 1e9


def _measured(rows: Sequence[Row]) -> list[Row]:
  return [row for row in rows if row.found and 'images/s' in row.found]


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
  """Whether two calls ran the same code on the same kind of card."""
  return all(one.get(key) == other.get(key) for key in ('code', 'kind', 'plan'))


def peer_of(row: Row, rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> Row | None:
  """The compiled peer of one of our rows, if it was measured by the same code on the same kind of card."""
  name = row.name.removesuffix(', ours') + ', PyTorch compiled'
  found = (one for one in _measured(rows) if one.name == name)
  return next((one for one in found if alike(calls[one.call], calls[row.call])), None)


def utilization(row: Row, rows: Sequence[Row], call: dict[str, Any]) -> float | None:
  """The share of the devices' peak that a training step reaches: operations of the network x images a second.

  The peak is that of bfloat16, of TF32 half of it; none is stated for float32.
  """
  network = row.name.partition(' ')[0]
  counted = [r.found for r in rows if r.found and r.name.startswith(network)]
  flops = next((found['flops an image'] for found in counted if 'flops an image' in found), None)
  peak = call.get('peak_flops')
  if not (flops and peak) or 'float32' in row.name:
    return None
  share = row.found['images/s'] * flops / (peak / 2 if 'TF32' in row.name else peak)
  return share * call['devices'] if 'one device' in row.name else share


def _steps(rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> list[str]:
  body = []
  for row in _measured(rows):
    found, peer = row.found, peer_of(row, rows, calls) if row.name.endswith(', ours') else None
    first = found.get('first dispatch (s)', found.get('first call (s)'))
    body.append((
      row.name, found.get('batch'), found.get('steps a dispatch'), *_rates(found),
      peer and found['images/s'] / peer.found['images/s'],
      utilization(row, rows, calls[row.call]), _gigabytes(found), first,
    ))  # fmt: skip
  head = ['', 'batch', 'steps a call', 'images/s', 'least', 'most', '/ PyTorch compiled', 'MFU', 'peak GB',
          'first call (s)']  # fmt: skip
  note = 'The first call compiles; what an earlier row of the same call compiled it finds.'
  return [tables.markdown(head, body), note] if body else []


def _members(rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> list[str]:
  body = []
  for row in rows:
    for count, found in sorted((row.found or {}).items(), key=lambda one: int(one[0])):
      alone = row.found['1']['images/s']
      body.append((
        f'{row.name}, {count}', *_rates(found),
        found['images/s'] / alone, found['first dispatch (s)'],
      ))  # fmt: skip
  head = ['seeds in one program', 'images/s', 'least', 'most', '/ one run', 'first dispatch (s)']
  return [tables.markdown(head, body)] if body else []


def _runs(rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> list[str]:
  lines = [f'- {row.name}: {brief(row.found)}{_results(row.found)}' for row in rows if row.found]
  return ['\n'.join(lines)] if lines else []


# Of a run's results, the ones a reader asks for; all are in results.json.
_TOLD = (
  'validation/eps',
  'test/eps',
  'recognized as their label',
  'memorized fraction',
  'its held-out null',
)


def _results(found: dict[str, Any]) -> str:
  texts = []
  results = found.get('results') or {}
  for name, value in ((name, results[name]) for name in _TOLD if name in results):
    if isinstance(value, dict):
      interval = Interval(value['estimate'], value['low'], value['high'])
      texts.append(f'{name} {format_interval(interval)}')
    elif isinstance(value, float):
      texts.append(f'{name} {tables.number(value)}')
  return '; ' + ', '.join(texts) if texts else ''


def _feeding(rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> list[str]:
  body = [('the step takes', *_rates(row.found)) for row in _measured(rows)]
  for row in rows:
    if row.name == 'feeding' and row.found:
      body += [(name, *_rates(found)) for name, found in row.found.items()]
  return [tables.markdown(['', 'images/s', 'least', 'most'], body)] if body else []


def _rates(found: dict[str, Any]) -> tuple[float, float, float]:
  return found['images/s'], found['least'], found['most']


_BODIES: dict[int, Callable[..., list[str]]] = {
  1: _runs,
  2: _steps,
  3: _steps,
  4: _members,
  5: _runs,
  6: _feeding,
  7: _runs,
}


class Goal(NamedTuple):
  """What is aimed at: its text, what was found, whether that meets it, and what was traced for it, by its name."""

  text: str
  found: float
  met: bool
  traced: tuple[str, dict[str, Any]] | None = None


def goals(rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> list[Goal]:
  """The goals of which the rows know anything."""
  made = []
  named = {(row.part, row.name): row for row in rows if row.found}
  for name, least in (('U-Net bfloat16, ours', 0.35), ('DiT-B/2 bfloat16, ours', 0.5)):
    row = named.get((2, name))
    if row is None or 'images/s' not in row.found:
      continue
    peer = peer_of(row, [one for one in rows if one.part == 2], calls)
    if peer is not None and name.startswith('U-Net'):
      ratio = row.found['images/s'] / peer.found['images/s']
      made.append(
        Goal('U-Net bfloat16 / PyTorch compiled >= 1', ratio, ratio >= 1, (name, row.found))
      )
    share = utilization(row, [one for one in rows if one.part == 2], calls[row.call])
    if share is not None:
      made.append(
        Goal(f'{name.partition(",")[0]}, MFU >= {least}', share, share >= least, (name, row.found))
      )
  mixture = named.get((4, 'mixture'))
  if mixture is not None and '16' in mixture.found:
    sixteen, text = mixture.found['16'], '16 seeds of the mixture'
    multiple = sixteen['images/s'] / mixture.found['1']['images/s']
    made.append(Goal(f'{text} / one >= 8', multiple, multiple >= 8, (text, sixteen)))
  job = named.get((5, 'digits, nothing compiled'))
  if job is not None and 'report (s)' in job.found:
    seconds = job.found['report (s)']
    made.append(Goal('digits, start to report <= 60 s', seconds, seconds <= 60))
  return made


def _goals(rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> list[str]:
  found = goals(rows, calls)
  if not found or any(call['plan'] == 'tiny' for call in calls):
    return []
  body = [(goal.text, goal.found, 'yes' if goal.met else 'no') for goal in found]
  text = ['### Goals', tables.markdown(['goal', 'found', 'met'], body)]
  missed = dict(goal.traced for goal in found if goal.traced and not goal.met)
  return text + [profile(name, traced) for name, traced in missed.items()]


def profile(name: str, found: dict[str, Any]) -> str:
  """Where the time of a traced dispatch went."""
  if 'operations' not in found:
    return f'{name}: not traced.'
  table = tables.markdown(['operation', 'calls', 'share of the time'], found['operations'])
  return f'{name}, the costliest operations of {found["steps traced"]} steps:\n\n{table}'


def describe(call: dict[str, Any]) -> str:
  """Card, versions, commit and command of a call."""
  parts = [call['kind'], f'{call["devices"]} device{"s" * (call["devices"] > 1)}']
  if call.get('peak_flops'):
    parts.append(f'peak {call["peak_flops"] / 1e12:.0f} TFLOP/s in bfloat16')
  parts += [f'{key} {call[key]}' for key in ('driver', 'python', 'jax', 'torch') if call.get(key)]
  changed = ' with uncommitted changes' if call.get('changed') else ''
  return f'{", ".join(parts)}; commit {call["commit"]}{changed}; `{call["command"]}`'


def write(rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> str:
  """The sections for docs/PERFORMANCE.md."""
  text = ['## On an accelerator', 'Printed by `python -m benchmarks.accelerator`.']
  if any(call['plan'] == 'tiny' for call in calls):
    text.append('TOY SIZES (`--tiny`): these numbers say that the command works, and nothing else.')
  told = None
  for part, title in _TITLES.items():
    mine = sorted((row for row in rows if row.part == part), key=lambda row: row.call)
    if not mine:
      continue
    text.append(f'### {title}')
    on = [describe(calls[call]) for call in sorted({row.call for row in mine})]
    text += on if on != told else []
    told = on
    text += _BODIES[part](mine, calls)
    absent = [f'- {row.name}: {row.status}: {row.why}' for row in mine if row.status != 'measured']
    text += ['\n'.join(absent)] if absent else []
    text.append(f'Part {part} took {sum(row.seconds for row in mine):.0f} s.')
  text += _goals(rows, calls)
  return '\n\n'.join(text) + '\n'
