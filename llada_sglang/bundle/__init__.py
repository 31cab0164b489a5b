"""A bundle: every wheel a server needs, in parts of a given size, with an installer.

For hosts without a network. `collect` resolves and downloads, `parts` splits and writes the
manifest, `install` is the installer, written into the bundle as it is. Standard library only, so
that `python3 -m llada_sglang.cli bundle` runs in a source tree with nothing installed but pip.
"""
