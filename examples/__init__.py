"""Specs of published patterns, and in `train` a language model that is made of one."""
