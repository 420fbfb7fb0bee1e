"""What solvers of penalised linear models share."""
