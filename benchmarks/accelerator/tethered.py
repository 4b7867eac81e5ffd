"""A program that ends when its parent does: python tethered.py PROGRAM ARGUMENTS. A killed benchmark leaves none."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == '__main__':
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  os.execv(sys.argv[1], sys.argv[1:])
