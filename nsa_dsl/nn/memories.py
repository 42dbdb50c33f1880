"""What a layer gives its compressed memories: the keys before or after their rotary positions."""

from __future__ import annotations

from torch import Tensor, nn

from nsa_dsl.compressors import split_blocks
from nsa_dsl.nn.rotary import rotate
from nsa_dsl.pattern import Compress, Pattern


def used_memories(definition: Pattern) -> list[Compress]:
    """The compressed memories that branches attend to, each once."""
    return list(dict.fromkeys(each.memory for each in definition.branches if isinstance(each.memory, Compress)))


class PreRotary(nn.Module):
    """A compressor as the op calls it, whose keys carry no positions before it and whose slots stand at their first token after it.

    k: (batch, kv_heads, tokens, d_qk) not rotated, when branches share keys; the blocks of k that the op offers are rotated, and are not
    read. None: the blocks that come are not rotated.
    """

    def __init__(self, compressor: nn.Module, memory: Compress, k: Tensor | None, positions: Tensor, base: float) -> None:
        super().__init__()
        self.compressor, self.memory = compressor, memory
        self.k, self.positions, self.base = k, positions, base

    def forward(self, k_blocks: Tensor, v_blocks: Tensor) -> tuple[Tensor, Tensor]:
        """As MLPCompressor.forward."""
        count, block, stride = k_blocks.shape[2], self.memory.block, self.memory.stride
        if self.k is not None and count:
            k_blocks = split_blocks(self.k.to(k_blocks.dtype), block, stride)
        k_slots, v_slots = self.compressor(k_blocks, v_blocks)
        return rotate(k_slots, self.positions[..., ::stride][..., :count], self.base), v_slots
