"""Other tools' logs as points of entropy and performance, and as runs: formats, names of metrics, units.

Logs are untrusted text, which is never evaluated. This room never imports torch or transformers.
"""
