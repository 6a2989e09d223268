"""Commands under their former names, for scripts that call them."""
