"""What all figures have in common: colours, fonts, forest plots, axes. It imports nothing of ours."""
