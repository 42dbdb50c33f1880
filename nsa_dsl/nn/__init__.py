"""Modules for PyTorch models: an attention layer whose attention is a pattern.

    layer = nsa_dsl.nn.SparseAttention(nsa_dsl.load("nsa.nsa").pattern("nsa"), dim=2560, heads=64, kv_heads=4, head_dim=192, value_dim=128)
    y = layer(x)

x and y: (batch, tokens, dim).
"""

from nsa_dsl.nn.attention import SparseAttention
from nsa_dsl.nn.rotary import document_positions, rotate

__all__ = ["SparseAttention", "document_positions", "rotate"]
