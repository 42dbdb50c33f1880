"""Times on a GPU: a pattern's kernels beside the attention that PyTorch and others ship, on the same inputs in the same run."""
