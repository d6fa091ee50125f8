"""What acts on an update's tokens: entropy controls, how they compose, what steers them, and the loss they make.

`base` has what a control is; `paper` those of Cui et al. 2025 and what they are compared with; `others` those of other
papers; `controllers` what changes a control from update to update; `loss` makes one loss of surrogate and control;
`catalog` knows each by name, as text and as JSON. torch only: no model and no file may come in here.
"""
