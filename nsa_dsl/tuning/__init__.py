"""Which tiles are fastest on this card: candidates for each kernel, checked, timed, and kept by `nsa_dsl.tuned`.

`candidates` lists them, `search` tries them within a budget, `bench` checks and times them on a GPU, `ranks` lets one process of a
distributed program tune for all, and `tune` puts it together.
"""
