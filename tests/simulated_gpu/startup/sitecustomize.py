"""Python imports this at its start where this directory is on its path."""

from simulated_gpu.install import install

install()
