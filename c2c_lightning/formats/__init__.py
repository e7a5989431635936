"""Files of fusers: our own folder, the published format, and the way between them."""
