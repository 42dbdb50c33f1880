"""The contenders: the pattern's op, SDPA by its cuDNN and FlashAttention kernels, and FlexAttention with the pattern's own mask."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from nsa_dsl.bench.contender import Case, MaskCost, Prepared
from nsa_dsl.bench.masks import by_head, make_mask, one_softmax
from nsa_dsl.bench.rows import Products
from nsa_dsl.bench.timing import median_ms, peak_bytes
from nsa_dsl.op import AttentionOp
from nsa_dsl.verify.leaves import watch

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def dense(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """Dense attention by one of torch's own kernels. q: (batch, heads, tokens, d_qk); k, v: (batch, kv_heads, tokens, d)."""
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def prepare_dense(case: Case, name: str) -> Prepared:
    """Every key that the query may see at all: causal attention unless the pattern looks ahead. name: of BACKENDS."""
    q, k, v = case.leaves()
    n = case.shape.tokens
    pairs = case.shape.batch * case.shape.heads * (n * (n + 1) // 2 if case.causal else n * n)
    return Prepared(
        forward=lambda: dense(BACKENDS[name], q, k, v, causal=case.causal),
        leaves=(q, k, v),
        cotangent=case.cotangent,
        products=Products(pairs, case.shape.dim_qk, case.shape.dim_v),
        note="every key" + (", causal" if case.causal else ""),
    )


def prepare_flex(case: Case) -> Prepared:
    """FlexAttention, compiled, with a block mask of the pattern's relation. Raises Refused for a pattern that it cannot express."""
    relation, scale = one_softmax(case.pattern)
    shape = case.shape
    # A new length is a new mask function, and what is compiled for old ones only fills torch's limits.
    torch._dynamo.reset()
    mask_mod = make_mask(relation, shape.tokens, shape.heads, shape.kv_heads)
    compiled: Any = torch.compile(create_block_mask)
    heads = shape.heads if by_head(relation) else None

    def make() -> Any:
        return compiled(mask_mod, None, heads, shape.tokens, shape.tokens, device="cuda")

    begin = time.perf_counter()
    blocks = make()
    torch.cuda.synchronize()
    first = 1e3 * (time.perf_counter() - begin)
    cost = MaskCost(first, median_ms(make, 5), peak_bytes(make) / 2**30)
    run: Any = torch.compile(flex_attention)
    q, k, v = case.leaves()

    def forward() -> Tensor:
        out: Tensor = run(q, k, v, block_mask=blocks, scale=scale, enable_gqa=True)
        return out

    # What torch compiles backward takes over the forward's tensors.
    return Prepared(forward, (q, k, v), case.cotangent, case.products, cost, "the making of its mask is not in its times", once=True)


def prepare_own(case: Case, op: AttentionOp) -> Prepared:
    """The pattern's own op: gradients of everything that is learned."""
    call, leaves = watch(case.inputs)

    def forward() -> Tensor:
        out = op(call.q, call.k, call.v, **call.options)
        assert isinstance(out, Tensor)
        return out

    return Prepared(forward, tuple(leaves.values()), case.cotangent, case.products)
