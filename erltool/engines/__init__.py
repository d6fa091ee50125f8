"""Where users go beyond one machine: any control inside TRL's trainer, a configuration as a command line of verl."""
