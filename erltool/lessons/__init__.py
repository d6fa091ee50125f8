"""What the notebooks need beside the package: checks of exercises, copies for participants."""
