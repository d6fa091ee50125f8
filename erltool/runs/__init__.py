"""Recorded runs: the metrics, the reader, the one writer, comparisons with intervals, and alarms.

This room never imports torch or transformers, so that a run can be read on any machine.
"""
