"""Reads what JAX's runtime says of a process that dies, and says it in one line.

Where another process is gone, the C++ runtime ends this one with a page of text and a stack trace, and no Python runs
any more. So `processes` starts this program beside a process of several and gives it what the runtime writes to the
standard error. It passes everything on but that page. It needs the standard library alone, to start in milliseconds.
"""

import re
import sys

AGAIN = 'start all processes again with the same command, the run goes on from the last checkpoint'
_FATAL = 'Terminating process because the JAX distributed service detected fatal errors'
# What the runtime logs (E1121 22:26:18.28 1754 coordination_service.cc:1549] ...) on its way to that end.
_BEFORE = re.compile(r'[EWF]\d{4} .*(coordination_service|preemption_sync_manager|client\.h)')
_NORMAL = re.compile(r'W\d{4} .*preemption_notifier.*SIGTERM caught')


def last_words(text: str, total: int) -> str:
  """One line for the page with which JAX's runtime ends a process: who is gone, why, and what to do.

  Args:
    text: what the runtime wrote, `_FATAL` in it.
    total: the number of processes; 1 if unknown.
  """
  of = f' of {total}' if total > 1 else ''
  reason = text.partition('absl::Status: ')[2]
  silent = re.search(r'stopped sending heartbeats\):\s*((?:\d+\s+)+)', text)
  if silent:
    names = ' and '.join(silent[1].split())
    return f'error: process {names}{of} is gone: no sign of life from it; {AGAIN}'
  if 'Failed to send RPC to coordination service' in reason:
    return f'error: process 0{of} is gone: its connection was closed; {AGAIN}'
  if 'DEADLINE_EXCEEDED' in reason:
    return 'error: not all processes came in time: start all of them, with the same --coordinator'
  first = (reason or text).strip().splitlines()[0]
  return f'error: the processes have lost each other: {first}; {AGAIN}'


def _main(total: int) -> None:
  held: list[str] = []
  for line in sys.stdin:
    if not held and not _BEFORE.match(line):
      if not _NORMAL.match(line):
        print(line, end='', file=sys.stderr, flush=True)
    else:
      held.append(line)
  text = ''.join(held)
  sys.stderr.write(last_words(text, total) + '\n' if _FATAL in text else text)


if __name__ == '__main__':
  _main(int(sys.argv[1]))
