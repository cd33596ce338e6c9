"""What the PEs compute: kernels made of fabric moves and dense local work. A kernel knows no model."""
