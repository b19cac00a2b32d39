"""The data preprocessor, which copies a batch to the GPU without waiting."""

from __future__ import annotations

import copy
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
            return self._cast_element(data)
        if isinstance(data, BaseInstanceMasks):  # it has no loop that the base class could make sense of
            return data.to(self.device) if hasattr(data, "to") else data
        return super().cast_data(data)

    def forward(self, data: dict, training: bool = False) -> dict:
        """See mmdet."""
        inputs = self.cast_data(data["inputs"])  # the base class does the rest
        swaps = self._channel_conversion
        if swaps:
            inputs = inputs.flip(1) if isinstance(inputs, Tensor) else [one.flip(0) for one in inputs]
        data = {**data, "inputs": inputs}
        self._channel_conversion = False  # mmengine's way indexes by a list, which waits
        try:
            return super().forward(data, training)
        finally:
            self._channel_conversion = swaps

    def _cast_element(self, element: BaseDataElement) -> BaseDataElement:
        # mmengine's `new` checks each field and copies meta information deeply, which takes longer.
        copied = copy.copy(element)
        own = vars(copied)
        for name, value in element.items():
            place = name if name in own else f"_{name}"  # where a property keeps its value
            own[place] = self.cast_data(value)
        own.update(_data_fields={*element._data_fields}, _metainfo_fields={*element._metainfo_fields})
        return copied
