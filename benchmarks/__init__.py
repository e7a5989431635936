"""What takes how long, and why. Memory is kept as `fit` keeps it."""

from c2c_lightning.training.acceleration import keep_freed_memory

keep_freed_memory()
