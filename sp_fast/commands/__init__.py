"""The commands of `sp-fast`, one module each. Heavy imports wait until a command runs."""
