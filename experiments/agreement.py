"""Moved to `diffusion.commands.agreement`."""

if __name__ == '__main__':
  import sys

  print('error: this is now `python -m diffusion.commands.agreement`', file=sys.stderr)
  sys.exit(2)
