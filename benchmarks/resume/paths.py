"""The cases in which the path of a run is odd."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.resume.bench import SHORT, Bench, rows
from benchmarks.resume.cases import Case
from benchmarks.resume.judge import (
  LOST,
  Before,
  Expected,
  Verdict,
  judge,
  judged_once,
  last_line,
)

# What a shell, a glob, a URL, a configuration or Orbax may take for something else.
NAMES = (
  'x[1]', '[abc]', '[', ']', 'a*', '*', 'what?', '{a,b}', '{', 'two words', ' begins', 'ends ', 'tab\tin',
  'line\nbreak', "it's", 'a"b', 'back\\slash', '$HOME', '${HOME}', '`ls`', '$(ls)', 'a;b', 'a&b', 'a|b', 'a<b>c', '(a)',
  '!a', '#a', '%20', '%s', '~', '~root', 'a:b', 'a,b', 'a=b', '-dash', '--flag', '.hidden', '...', 'a@b', 'a^b', 'a+b',
  '1', '120.sha256', 'checkpoints', 'run.json', 'e\u0301', '\u00e9', '\u4f60\u597d', '\U0001f600', '\u202eabc',
  'nul\x01', 'bytes\udcff', 'a.orbax-checkpoint-tmp-1', 'x.deleted', 'n' * 255,
)  # fmt: skip


def paths() -> Iterator[Case]:
  """A run from nothing in a folder of an odd name: to its end as anywhere, or refused before anything is trained."""
  for name in NAMES:
    shown = name.encode('unicode_escape', 'surrogatepass').decode()
    yield Case('paths', shown[:40], _in_a_folder(lambda place, name=name: place / name), True)
  yield Case('paths', 'two levels of [', _in_a_folder(lambda place: place / '[a]' / 'b[!c]'), True)
  yield Case('paths', '3,481 characters', _in_a_folder(_long), True)
  yield Case(
    'paths', '250 folders deep', _in_a_folder(lambda place: place.joinpath(*'d' * 250)), True
  )
  yield Case('paths', 'a link to a folder', _in_a_folder(_linked), True)
  yield Case('paths', 'a dangling link', _in_a_folder(_dangling), True)
  yield Case('paths', '[ and resumed', _resumed_in_brackets, True)


def _long(place: pathlib.Path) -> pathlib.Path:
  while len(str(place)) < 3481 - 201:
    place = place / ('n' * 200)
  return place / ('m' * (3480 - len(str(place))))


def _linked(place: pathlib.Path) -> pathlib.Path:
  (place / 'true').mkdir()
  (place / 'link').symlink_to('true')
  return place / 'link'


def _dangling(place: pathlib.Path) -> pathlib.Path:
  (place / 'link').symlink_to('nowhere')
  return place / 'link'


def _in_a_folder(
  name: Callable[[pathlib.Path], pathlib.Path],
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    place = bench.place().parent
    workdir = name(place)
    ended = bench.go(workdir, *SHORT)
    said = str(workdir).encode(errors='backslashreplace').decode()[:60]  # as a program can say it
    named = rf'error: .*({re.escape(said)}|--workdir)'
    if ended.status not in (0, None):
      with contextlib.suppress(OSError):
        if rows(workdir):
          return [Verdict(LOST, f'trained, and then: {last_line(ended.said)}')]
    expected = judged_once(bench, bench.whole)
    return [judge(bench, workdir, ended, Before({}), expected, 0, Expected(named, None))]

  return run


def _resumed_in_brackets(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
  """A run that is killed in such a folder, and goes on."""
  workdir = bench.place('runs [1]*')
  program = bench.start(workdir, *SHORT)
  program.wait_until(lambda: rows(workdir) >= 11)
  program.kill()
  ended = bench.go(workdir, *SHORT)
  expected = judged_once(bench, bench.whole)
  return [judge(bench, workdir, ended, Before({}), expected, 0, Expected('--workdir', None))]
