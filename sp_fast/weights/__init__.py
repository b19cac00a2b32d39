"""Weights files: read without running code in them, recognised by their keys, loaded in full or refused."""
