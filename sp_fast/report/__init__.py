"""Progress on the terminal, tables and figures."""
