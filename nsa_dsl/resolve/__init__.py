"""Name resolution: syntax tree to `pattern.Pattern`, `pattern.Model` and `relation.Condition`.

Data flows `arguments, integers -> relations -> choices -> branches -> patterns -> models -> spec`; `problems` collects
what is wrong on the way, and `scope` says what names mean.
"""

from nsa_dsl.resolve.spec import Spec

__all__ = ["Spec"]
