"""Published measurements, and the models that predict them: one file for a family, each with its `GROUPS`."""
