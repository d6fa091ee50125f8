"""A run's folder, and what recorded runs say: METRICS, the reader, the writer, comparisons with intervals, alarms.

Never torch or transformers: a run is read where it was not made.
"""
