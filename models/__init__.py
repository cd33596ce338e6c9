"""Plain flax model families: no wafer in sight. The wheel installs this package as `wsejax_models`."""
