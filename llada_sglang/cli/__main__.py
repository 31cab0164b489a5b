"""`python -m llada_sglang.cli`: the same as `llada-sglang`."""

import sys

from llada_sglang.cli import main

if __name__ == "__main__":
    sys.exit(main())
