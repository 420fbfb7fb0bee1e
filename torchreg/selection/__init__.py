"""Which parameters of a model are penalised."""
