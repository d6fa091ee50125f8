"""Beyond one machine: any control inside TRL's trainer, and a configuration as a command line of verl."""
