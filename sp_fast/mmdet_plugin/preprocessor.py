"""The data preprocessor, which copies a batch to the GPU without waiting."""

from __future__ import annotations

from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures.bbox import BaseBoxes
from mmdet.structures.mask import BaseInstanceMasks
from mmengine.structures import BaseDataElement
from torch import Tensor

from sp_fast.transfers import to_device


@MODELS.register_module()
class BatchPreprocessor(DetDataPreprocessor):
    """mmdet's `DetDataPreprocessor`, with the same arguments and results, that does not wait for the GPU."""

    _channel_conversion: bool

    def cast_data(self, data: Any) -> Any:
        """See mmengine."""
        if isinstance(data, Tensor):
            return to_device(data, self.device)
        if isinstance(data, BaseBoxes):
            return type(data)(to_device(data.tensor, self.device), clone=False)
        if isinstance(data, BaseDataElement):
            moved = data.new()
            moved.set_data({name: self.cast_data(value) for name, value in data.items()})
            return moved
        if isinstance(data, BaseInstanceMasks):  # it has no loop that the base class could make sense of
            return data.to(self.device) if hasattr(data, "to") else data
        return super().cast_data(data)

    def forward(self, data: dict, training: bool = False) -> dict:
        """See mmdet."""
        data = self.cast_data(data)
        swaps = self._channel_conversion
        if swaps:
            inputs = data["inputs"]
            whole = isinstance(inputs, Tensor)
            data = {**data, "inputs": inputs.flip(1) if whole else [one.flip(0) for one in inputs]}
        self._channel_conversion = False  # mmengine's way indexes by a list, which waits
        try:
            return super().forward(data, training)
        finally:
            self._channel_conversion = swaps
