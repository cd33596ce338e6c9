"""What a program, a model or a machine would cost: prices as pure functions of data."""
