"""Moved to `diffusion.commands.report`."""

if __name__ == '__main__':
  import sys

  print('error: this is now `python -m diffusion.commands.report`', file=sys.stderr)
  sys.exit(2)
