"""Small penalised quadratics, solved exactly by exchanging columns."""
