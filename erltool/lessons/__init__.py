"""Support for the notebooks: checks of exercises, and copies for participants."""
