"""A small byte-level language model whose attention is a model spec: `python examples/train/train.py SPEC`."""
