"""Group-relative policy optimisation: configuration, memory plan, the loop, evaluation, grids of experiments."""
