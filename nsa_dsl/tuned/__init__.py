"""Measured decisions: tables of the tiles that were fastest on a card, shipped beside this file and kept in the user's cache.

`keys` names what a decision is for, `table` is the file format, `lookup` finds the decisions of a call. `nsa_dsl.tuning` makes them.
"""
