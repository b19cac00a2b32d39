"""`sp-fast train`: the same as `python sp_fast/train.py`, which reads its own options."""

import sys

import typer

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Pre-train, fine-tune or evaluate from a config."""
    from sp_fast.train import main

    sys.exit(main(context.args))
