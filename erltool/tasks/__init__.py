"""Prompts with answers and their verifiers: generated (`chain`, `countdown`), from files and the hub, and the judge.

Verifiers never evaluate what a model wrote; what may hang or crash runs in a process of its own (`judge`, `jury`).
"""
