"""Sweeps: a search space over configurations, trials on Ray Tune, one MLflow run for all of them and one for each."""
