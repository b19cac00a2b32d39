"""Saliency-prompt pre-training of query-based instance segmenters.

`import sp_fast` and `sp_fast.ops` need PyTorch alone. `sp_fast.models` plugs into mmdet 3.3.0.
"""

__version__ = "0.1.0"
