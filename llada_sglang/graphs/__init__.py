"""CUDA graphs of block rows: the body by number of rows, the head by number of positions."""
