"""Simulations of the statistics that decide: how often they err, how soon they see, what they cost.

Each module owns one question and gives its answer as dataclasses; `python -m tests.simulations` prints them as tables.
They run the formulas of `adapters.statistics` themselves, over arrays, and know nothing of the gateway.
"""
