"""Other people's logs as points of entropy and performance, and as runs: formats, names of metrics, units.

What is read is hostile: never evaluated, shown as text only. Never torch or transformers.
"""
