"""What a forward of block rows costs at least, from config.json and published GPU numbers.

Pure arithmetic: `shape` reads a configuration, `gpus` holds the hardware, `cost` counts bytes and
operations per part of a step. Imports no torch.
"""
