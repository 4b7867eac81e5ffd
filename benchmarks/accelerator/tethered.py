"""A program that ends when its parent does, so that a killed benchmark leaves none.

python tethered.py PARENT PROGRAM ARGUMENTS, PARENT being the number of the process that starts it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == '__main__':
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  # A parent that ended before the line above sends nothing any more.
  if os.getppid() != int(sys.argv[1]):
    sys.exit('the benchmark that started this has ended')
  os.execv(sys.argv[2], sys.argv[2:])
