"""Sweeps: a search space over configurations, trials that Ray runs, one MLflow run for all of them and one for each."""
