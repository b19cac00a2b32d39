"""`python -m sp_fast` is the command `sp-fast`."""

from sp_fast.cli import main

main()
