"""The law R = -a exp(H) + b: fits, intervals, forecasts, rival laws, and its coefficients over model sizes.

This room works on points (H, R) from anywhere, with numpy, scipy and pandas. It knows no torch, no run and no log.
"""
