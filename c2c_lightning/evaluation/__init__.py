"""What cache communication gave: methods, controls, statistics, analyses and the report."""
