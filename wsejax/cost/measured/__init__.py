"""Models of published measurements, one module for each kind; each has its `GROUPS`."""
