"""The command line: thin commands over :mod:`atmc`."""
