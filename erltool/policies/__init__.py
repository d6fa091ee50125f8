"""Running a policy: where models come from, loading under 4 bits with LoRA, head and attention, sampling, scoring.

torch, transformers, peft, bitsandbytes. Nothing here knows of rewards or of training.
"""
