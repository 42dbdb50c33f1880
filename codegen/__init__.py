"""From plan to kernel source: frozen template contexts, and integer expressions printed as Triton.

The folder lies beside `nsa_dsl` and is linked into it, so it could be found at the top of the import path too, where its
modules would exist twice with types that do not compare equal.
"""

if __name__ != "nsa_dsl.codegen":
    raise ImportError("this package is nsa_dsl.codegen; import it by that name")
