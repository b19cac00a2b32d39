#pragma once

#include "roi_boxes.cuh"

namespace sp_fast::cuda {

// Features [batch, channels, height, width], contiguous or channels-last; height and width are the boxes'.
struct RoiFeatures {
    const void* data;
    Element element;
    int64_t batch, channels;
    bool channels_last;
};

// Number of fp32 values that launch_roi_average_pool needs as scratch.
int64_t roi_average_pool_scratch(const RoiFeatures& features, const RoiBoxes& boxes, int multiprocessors);

// -> out [batch, number, channels], type of the features
void launch_roi_average_pool(const RoiFeatures& features, const RoiBoxes& boxes, int multiprocessors,
                             float* scratch, void* out, cudaStream_t stream);

}  // namespace sp_fast::cuda
