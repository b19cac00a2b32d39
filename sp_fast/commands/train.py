"""`sp-fast train`: passes its options on to `sp_fast.train`."""

import sys

import typer

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Pre-train, fine-tune or evaluate from a config."""
    from sp_fast.train import main

    sys.exit(main(context.args))
