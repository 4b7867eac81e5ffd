"""Draws faults by rule where those of the table are written by hand, and runs the tests that run the changed line.

What survives is read by a person: it asks for a test, or changes nothing that anyone could see.

pytest -m 'not slow' -n 2 --cov=diffusion --cov-context=test --junitxml=times.xml   # once: which test runs which line
python -m tests.mutants.drawn --times=times.xml --only='sampling.*ignored' --count=100 --out=drawn.jsonl
"""

import ast
import concurrent.futures
import copy
import hashlib
import json
import pathlib
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree

from absl import app, flags

from tests.mutants import runner

COVERAGE = flags.DEFINE_string(
  'coverage', '.coverage', 'What pytest-cov wrote, with a context for each test.'
)
TIMES = flags.DEFINE_string('times', 'times.xml', 'What pytest wrote for --junitxml.')
ONLY = flags.DEFINE_string(
  'only', '', 'A regular expression, looked for in file, rule and function.'
)
COUNT = flags.DEFINE_integer('count', 100, 'Faults drawn, as many of each rule as there are.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the draw.')
SECONDS = flags.DEFINE_float(
  'seconds', 60.0, 'Of the tests of one fault at most, by what they took.'
)
JOBS = flags.DEFINE_integer('jobs', 2, 'Faults side by side.')
OUT = flags.DEFINE_string(
  'out', 'drawn.jsonl', 'JSON-lines file to which what is found is appended.'
)

_OTHER = {'any': 'all', 'all': 'any', 'min': 'max', 'max': 'min', 'ceil': 'floor', 'floor': 'ceil'}
_ENDS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}


class Edit(NamedTuple):
  """One node of a file and what stands in its place."""

  file: str
  function: str
  rule: str
  line: int  # that a test must run
  old: ast.AST
  new: ast.AST

  @property
  def _place(self) -> str:
    return ast.dump(self.old, include_attributes=True)

  @property
  def name(self) -> str:
    """What it is known by; the whole of both sides is in the digest alone."""
    both = [' '.join(ast.unparse(node).split()) for node in (self.old, self.new)]
    if self.rule == 'ignored argument':
      both = [both[0].partition('(')[0], ast.unparse(_first(self.new))]
    digest = hashlib.sha256((self._place + ast.dump(self.new)).encode()).hexdigest()[:8]
    return f'{self.file}:{self.line} {self.function}: {both[0][:60]} => {both[1][:60]} [{digest}]'


def _first(function: ast.FunctionDef) -> ast.stmt:
  """The first statement behind the docstring."""
  body = function.body
  return body[min(len(body) - 1, int(ast.get_docstring(function) is not None))]


def _changed(node: ast.AST, change: Callable[[ast.AST], None]) -> ast.AST:
  found = copy.deepcopy(node)
  change(found)
  return found


def _ignored(node: ast.AST) -> Iterator[ast.AST]:
  """A function that takes the default of one argument, whatever is given."""
  if not isinstance(node, ast.FunctionDef):
    return
  given, used = node.args, {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
  pairs = zip([*given.posonlyargs, *given.args][::-1], given.defaults[::-1], strict=False)
  for argument, default in [*pairs, *zip(given.kwonlyargs, given.kw_defaults, strict=True)]:
    if default is not None and argument.arg in used:
      line = ast.copy_location(
        ast.Assign([ast.Name(argument.arg, ast.Store())], copy.deepcopy(default)), default
      )
      place = node.body.index(_first(node))
      yield _changed(node, lambda new, line=line, place=place: new.body.insert(place, line))


def _keyword(node: ast.AST) -> Iterator[ast.AST]:
  """A call without one of its keyword arguments."""
  for i, one in enumerate(node.keywords if isinstance(node, ast.Call) else ()):
    if one.arg:
      yield _changed(node, lambda new, i=i: new.keywords.pop(i))


def _entry(node: ast.AST) -> Iterator[ast.AST]:
  """A tuple, list, set or dictionary without one of its entries."""
  if isinstance(node, ast.Dict) and len(node.keys) > 1:
    for i in range(len(node.keys)):
      yield _changed(node, lambda new, i=i: (new.keys.pop(i), new.values.pop(i)))
  is_read = isinstance(getattr(node, 'ctx', ast.Load()), ast.Load)
  if isinstance(node, ast.Tuple | ast.List | ast.Set) and is_read and len(node.elts) > 1:
    for i in range(len(node.elts)):
      yield _changed(node, lambda new, i=i: new.elts.pop(i))


def _operand(node: ast.AST) -> Iterator[ast.AST]:
  """One side of an operation, or one condition of several."""
  if isinstance(node, ast.BinOp):
    yield from (node.left, node.right)
  if isinstance(node, ast.BoolOp):
    yield from node.values
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
    yield node.operand


def _branch(node: ast.AST) -> Iterator[ast.AST]:
  """One branch of two."""
  if isinstance(node, ast.IfExp):
    yield from (node.body, node.orelse)


def _order(node: ast.AST) -> Iterator[ast.AST]:
  """Two arguments in the other order."""
  if isinstance(node, ast.Call) and len(node.args) > 1:
    for i in range(len(node.args) - 1):
      pair = node.args[i : i + 2]
      if not any(isinstance(one, ast.Starred) for one in pair):
        yield _changed(
          node, lambda new, i=i: new.args.__setitem__(slice(i, i + 2), new.args[i : i + 2][::-1])
        )


def _constant(node: ast.AST) -> Iterator[ast.AST]:
  """Another number, truth, end of a comparison, or function."""
  if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
    new = not node.value if isinstance(node.value, bool) else node.value + 1
    yield ast.Constant(new)
  if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _ENDS:
    yield _changed(node, lambda new: new.ops.__setitem__(0, _ENDS[type(new.ops[0])]()))
  if isinstance(node, ast.Name | ast.Attribute):
    label = 'id' if isinstance(node, ast.Name) else 'attr'
    other = _OTHER.get(getattr(node, label))
    if other:
      yield _changed(node, lambda new: setattr(new, label, other))


def _name(node: ast.AST, names: list[str]) -> Iterator[ast.AST]:
  """Another name of the function."""
  if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
    yield from (ast.Name(one, ast.Load()) for one in names if one != node.id)


RULES = {
  'ignored argument': _ignored, 'dropped keyword': _keyword, 'dropped entry': _entry, 'dropped operand': _operand,
  'one branch': _branch, 'other order': _order, 'other constant': _constant,
}  # fmt: skip


def _is_refusal(node: ast.AST) -> bool:
  """What only says something: a message, or a refusal."""
  raises = isinstance(node, ast.If) and all(isinstance(one, ast.Raise) for one in node.body)
  says = isinstance(node, ast.Call) and re.search(r'print|warn|checks\.', ast.unparse(node.func))
  return bool(raises or says or isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr))


def edits(file: str) -> list[Edit]:
  """All of a file."""
  found = []

  def visit(node: ast.AST, function: str, names: list[str]) -> None:
    if _is_refusal(node):
      return
    line = getattr(node, 'lineno', 0)
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      function = f'{function}.{node.name}'.lstrip('.')
    if isinstance(node, ast.FunctionDef):
      line = _first(node).lineno
      stored = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
      own = [one.arg for one in [*node.args.args, *node.args.kwonlyargs]]
      own += [one.id for one in stored if isinstance(one.ctx, ast.Store)]
      names = [one for one in dict.fromkeys([*own, *names]) if one not in ('self', '_')]
    if function:
      for rule, make in RULES.items():
        found.extend(Edit(file, function, rule, line, node, new) for new in make(node))
      others = _name(node, names)
      found.extend(Edit(file, function, 'other name', line, node, new) for new in others)
    for label, value in ast.iter_fields(node):
      if label not in ('annotation', 'returns', 'decorator_list'):
        for child in value if isinstance(value, list) else [value]:
          if isinstance(child, ast.AST):
            visit(child, function, names)

  visit(ast.parse((runner.ROOT / file).read_text()), '', [])
  return found


def drawn() -> list[Edit]:
  """Of each rule in turn, whatever their numbers; each file as likely as another."""
  generator, groups = random.Random(SEED.value), {}
  for path in sorted((runner.ROOT / 'diffusion').rglob('*.py')):
    file = path.relative_to(runner.ROOT).as_posix()
    for one in edits(file):
      if re.search(ONLY.value, f'{file} {one.rule}: {one.function}'):
        groups.setdefault(one.rule, {}).setdefault(file, []).append(one)
  found, due = [], list(groups.values())
  while due and len(found) < COUNT.value:
    files = due.pop(0)
    file = generator.choice(list(files))
    found.append(files[file].pop(generator.randrange(len(files[file]))))
    if not files[file]:
      del files[file]
    if files:
      due.append(files)
  return found


def seconds_of_tests() -> dict[str, float]:
  """Node id of a test -> what it took."""
  cases = ElementTree.parse(TIMES.value).iter('testcase')
  return {
    f'{one.get("classname").replace(".", "/")}.py::{one.get("name")}': float(one.get('time'))
    for one in cases
  }


def tests_of(edit: Edit, lines: dict[int, list[str]], seconds: dict[str, float]) -> list[str]:
  """Tests that run its line, the quickest that take no longer than --seconds; the file of its name first."""
  ran = {one.rpartition('|')[0] for one in lines.get(edit.line, ())}
  place = lambda test: test.partition('::')[0]  # noqa: E731
  near = lambda test: pathlib.Path(place(test)).stem == f'test_{pathlib.Path(edit.file).stem}'  # noqa: E731
  chosen, total = [], 0.0
  for test in sorted(ran & seconds.keys(), key=lambda one: (not near(one), seconds[one])):
    if not chosen or total + seconds[test] < SECONDS.value:
      chosen, total = [*chosen, test], total + seconds[test]
  # File by file, in the order of the source: tests of a file may build on those before them.
  texts = {file: (runner.ROOT / file).read_text() for file in set(map(place, chosen))}
  cost = {file: sum(seconds[one] for one in chosen if place(one) == file) for file in texts}
  function = lambda test: test.partition('::')[2].partition('[')[0]  # noqa: E731
  defined = lambda test: texts[place(test)].find(f'def {function(test)}(')  # noqa: E731
  return sorted(chosen, key=lambda one: (not near(one), cost[place(one)], place(one), defined(one)))


class _Swap(ast.NodeTransformer):
  def __init__(self, edit: Edit):
    self._old, self._new = ast.dump(edit.old, include_attributes=True), edit.new

  def visit(self, node: ast.AST) -> ast.AST:
    if ast.dump(node, include_attributes=True) == self._old:
      return copy.deepcopy(self._new)
    return self.generic_visit(node)


def applied(edit: Edit) -> str:
  """The file with it, without comments."""
  tree = _Swap(edit).visit(ast.parse((runner.ROOT / edit.file).read_text()))
  return ast.unparse(ast.fix_missing_locations(tree))


def noticed(edit: Edit, tests: list[str], compiled: pathlib.Path) -> runner.Found:
  """What becomes of it."""
  if not tests:
    return runner.Found('not run', '', 0.0)
  with tempfile.TemporaryDirectory(prefix='mutant') as temporary:
    tree = pathlib.Path(temporary) / 'tree'
    runner.copy(tree, compiled)
    (tree / edit.file).write_text(applied(edit))
    return runner.run(tree, tests, 60.0 + 4 * SECONDS.value)


def main(_) -> None:
  """Runs what is drawn and not known yet, and prints it."""
  import coverage  # beside the tests' own requirements

  data, seconds = coverage.CoverageData(COVERAGE.value), seconds_of_tests()
  data.read()
  measured = {one.rpartition('/diffusion/')[2]: one for one in data.measured_files()}
  out = pathlib.Path(OUT.value)
  known = (
    {json.loads(line)['name'] for line in out.read_text().splitlines()} if out.exists() else ()
  )
  compiled = runner.ROOT / '.pytest_cache' / 'compiled'
  compiled.mkdir(parents=True, exist_ok=True)
  with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
    waiting = {}
    for edit in drawn():
      if edit.name not in known:
        lines = data.contexts_by_lineno(measured.get(edit.file.partition('/')[2], ''))
        tests = tests_of(edit, lines, seconds)
        waiting[pool.submit(noticed, edit, tests, compiled)] = edit
    for number, future in enumerate(concurrent.futures.as_completed(waiting), start=1):
      edit, found = waiting[future], future.result()
      line = {'name': edit.name, 'rule': edit.rule, **found._asdict()}
      with out.open('a') as file:
        file.write(json.dumps(line) + '\n')
      print(
        f'{number}/{len(waiting)} {found.outcome:<9}{edit.rule}: {edit.name} ({found.seconds:.0f} s) {found.by}',
        flush=True,
      )


if __name__ == '__main__':
  app.run(main)
