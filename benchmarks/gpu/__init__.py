"""The measurements on a GPU, ours and stock: `python -m benchmarks.gpu`."""
