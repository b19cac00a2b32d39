"""Annotation files and images with random damage."""
