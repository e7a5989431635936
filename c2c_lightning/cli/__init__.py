"""Every command of `python -m c2c_lightning`."""
