"""Lists the experiments of this chapter, or runs one."""

import sys

from experiments.__main__ import main

if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], "graph"))
