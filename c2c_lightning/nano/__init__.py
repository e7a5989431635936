"""The built-in pair: two tiny LMs, the invented world they were trained on, and how they were trained."""
