"""From graded answers to numbers, and from numbers to a page."""
