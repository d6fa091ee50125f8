"""Running a policy: finding and loading models, 4-bit weights, LoRA, the head, attention, sampling, scoring.

Uses torch, transformers, peft and bitsandbytes. Nothing here knows rewards or training.
"""
