"""Entropy controls, how they compose, what steers them, and the loss that they make.

`base` says what a control is; `paper` has those of Cui et al. 2025 and their rivals; `others` has those of other
papers; `controllers` change a control from update to update; `loss` joins surrogate and control; `catalog` knows each
by name, as text and as JSON. This room needs torch only, no model and no file.
"""
