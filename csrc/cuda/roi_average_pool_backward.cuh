#pragma once

#include "roi_boxes.cuh"

namespace sp_fast::cuda {

// grad [batch, number, channels], contiguous -> out [batch, channels, height, width] of the same type,
// contiguous or channels-last, at an address that is a multiple of 16
void launch_roi_average_pool_backward(const void* grad, Element element, int64_t batch, int64_t channels,
                                      const RoiBoxes& boxes, bool channels_last, int multiprocessors,
                                      void* out, cudaStream_t stream);

}  // namespace sp_fast::cuda
