"""Exporting trained models to files that run without mmdet."""

from sp_fast.export.model import FORMATS, export_model

__all__ = ["FORMATS", "export_model"]
