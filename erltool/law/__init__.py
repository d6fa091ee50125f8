"""The law R = -a exp(H) + b: fitting it, its intervals, forecasts by it, its rivals, its coefficients over sizes.

numpy, scipy and pandas only: what is known of points (H, R), wherever they come from. No torch, no run, no log.
"""
