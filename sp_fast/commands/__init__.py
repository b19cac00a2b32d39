"""The commands of `sp-fast`, one module each. Modules import what is heavy when the command runs."""
