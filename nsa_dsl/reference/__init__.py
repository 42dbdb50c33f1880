"""The dense reference: what a pattern means, computed by definition.

Everything here follows from `Pattern` and `relation.evaluate` alone; tiles, schedules, integer sets and generated code are
held to it and never used by it. Slow, exact (float64 unless told otherwise), differentiable, on any device.
"""

from nsa_dsl.pattern import NotSupported
from nsa_dsl.reference.attention import attend
from nsa_dsl.reference.choosing import choose, ranking, scores
from nsa_dsl.reference.memory import compress, slots
from nsa_dsl.reference.visible import mask

__all__ = ["NotSupported", "attend", "choose", "compress", "mask", "ranking", "scores", "slots"]
