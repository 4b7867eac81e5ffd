"""A fault: a small wrong edit of one function, found in the parsed source."""

import ast
import contextlib
import textwrap
from typing import NamedTuple

# What was found to survive, and what else there is.
KINDS = (
  'data', 'weights', 'dropout', 'keys', 'order', 'all or nothing', 'factors', 'experiments', 'devices', 'formula',
  'record',
)  # fmt: skip


class StaleError(ValueError):
  """The source no longer has what a fault changes."""


class Fault(NamedTuple):
  """One small wrong edit.

  Attributes:
    name: what is wrong then, in words; unique.
    kind: of `KINDS`.
    file: path in the repository.
    function: qualified name in the file, as `make_step.step` or `Class.method`; '' for the whole file.
    old: an expression, a keyword argument (`name=value`), or statements; matched as parsed, so that formatting does not
      matter.
    new: what stands in its place.
    tests: files or node ids that should notice.
    at: which occurrence, from 0, where there are several; -1 asks for there to be one.
    techniques: of the catalog that it spoils, by name.
  """

  name: str
  kind: str
  file: str
  function: str
  old: str
  new: str
  tests: tuple[str, ...]
  at: int = -1
  techniques: tuple[str, ...] = ()

  @property
  def room(self) -> str:
    """The folder in which it is."""
    parts = self.file.split('/')
    return parts[1] if parts[0] == 'diffusion' and len(parts) > 2 else parts[0]


def apply(source: str, fault: Fault) -> str:
  """The source with the fault.

  Raises:
    StaleError: the function or the fragment is not there, or in several places.
  """
  body = _function(ast.parse(source), fault.function)
  if body is None:
    raise StaleError(f'no function {fault.function} in {fault.file}')
  places = _places(body, fault.old)
  if not places:
    raise StaleError(f'{fault.function or fault.file} has no {fault.old!r}')
  if fault.at < 0 and len(places) > 1:
    raise StaleError(f'{fault.function} has {fault.old!r} {len(places)} times: say which by at=')
  try:
    first, last = places[max(fault.at, 0)]
  except IndexError:
    raise StaleError(f'{fault.function} has {fault.old!r} but {len(places)} times') from None
  found = _replaced(source, first, last, fault.new)
  try:
    changed = ast.parse(found)
  except SyntaxError as error:
    raise StaleError(f'{fault.name}: what it becomes is no Python: {error}') from None
  if ast.dump(changed) == ast.dump(ast.parse(source)):
    raise StaleError(f'{fault.name} changes nothing')
  return found


def _function(tree: ast.AST, name: str) -> ast.AST | None:
  """The function or class of a qualified name; nested functions are members of those they are in."""
  for part in name.split('.') if name else ():
    found = [node for node in _members(tree) if node.name == part]
    if not found:
      return None
    tree = found[-1]
  return tree


def _members(tree: ast.AST) -> list[ast.AST]:
  """The functions and classes directly in another one, be it within an `if` or a `with`."""
  found, due = [], list(ast.iter_child_nodes(tree))
  while due:
    node = due.pop(0)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      found.append(node)
    else:
      due = [*ast.iter_child_nodes(node), *due]
  return found


def _places(tree: ast.AST, old: str) -> list[tuple[ast.AST, ast.AST]]:
  """(first, last node) of each place that parses as the fragment does, in the order of the source."""
  wanted = _parsed(old)
  found = []
  for node in ast.walk(tree):
    if len(wanted) == 1 and type(node) is type(wanted[0]) and _same(node, wanted[0]):
      found.append((node, node))
    for _, block in ast.iter_fields(node):
      if isinstance(block, list) and isinstance(wanted[0], ast.stmt) and len(wanted) > 1:
        for i in range(len(block) - len(wanted) + 1):
          part = block[i : i + len(wanted)]
          if all(
            isinstance(a, ast.stmt) and _same(a, b) for a, b in zip(part, wanted, strict=True)
          ):
            found.append((part[0], part[-1]))
  found = [one for one in found if hasattr(one[0], 'lineno')]
  return sorted(found, key=lambda one: (one[0].lineno, one[0].col_offset))


def _same(one: ast.AST, other: ast.AST) -> bool:
  return _dump(one) == _dump(other)


def _dump(node: ast.AST) -> str:
  """As parsed, a name read or assigned to being the same."""
  return ast.dump(node).replace('ctx=Store()', 'ctx=Load()')


def _parsed(old: str) -> list[ast.AST]:
  """The nodes of a fragment: one expression or keyword argument, or statements."""
  text = textwrap.dedent(old).strip()
  with contextlib.suppress(SyntaxError):  # it is no expression
    return [ast.parse(f'({text}\n)', mode='eval').body]
  try:
    return ast.parse(text).body if '\n' in text or not _is_keyword(text) else _keyword(text)
  except SyntaxError:  # a return is a statement of a function alone
    return ast.parse(f'def f():\n{textwrap.indent(text, "  ")}').body[0].body


def _is_keyword(text: str) -> bool:
  """`name=value` without spaces around the sign is a keyword argument, with them an assignment."""
  name, equals, value = text.partition('=')
  return bool(equals) and name.isidentifier() and not value.startswith((' ', '='))


def _keyword(text: str) -> list[ast.AST]:
  return ast.parse(f'f({text})', mode='eval').body.keywords


def _replaced(source: str, first: ast.AST, last: ast.AST, new: str) -> str:
  lines = source.encode().splitlines(keepends=True)
  start = sum(map(len, lines[: first.lineno - 1])) + first.col_offset
  end = sum(map(len, lines[: last.end_lineno - 1])) + last.end_col_offset
  text = textwrap.dedent(new).strip()
  if isinstance(first, ast.stmt):
    text = textwrap.indent(text, ' ' * first.col_offset).lstrip()
  elif isinstance(first, ast.expr):
    text = f'({text})' if _binds(text) else text
  content = b''.join(lines)
  return (content[:start] + text.encode() + content[end:]).decode()


def _binds(text: str) -> bool:
  """Whether an expression needs parentheses wherever it may stand; what is no expression alone, as `*x`, has none."""
  try:
    node = ast.parse(text, mode='eval').body
  except SyntaxError:
    return False
  plain = (
    ast.Name,
    ast.Constant,
    ast.Call,
    ast.Attribute,
    ast.Subscript,
    ast.Tuple,
    ast.List,
    ast.Dict,
  )
  return not isinstance(node, plain)
