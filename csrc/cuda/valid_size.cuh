// The part of each feature map without padding, read on the device.
#pragma once

#include "device.h"

namespace sp_fast::cuda {

// Valid sizes [batch, 2], int64 (wide) or int32; null data: whole maps.
struct ValidSizes {
    const void* data;
    bool wide;
};

// Height (axis 0) or width (axis 1) of an image's valid part, clamped to [1, whole].
__device__ __forceinline__ int valid_extent(const ValidSizes& valid, int64_t image, int axis, int whole) {
    if (valid.data == nullptr) return whole;
    const int64_t at = 2 * image + axis;
    const int64_t given = valid.wide ? static_cast<const int64_t*>(valid.data)[at]
                                     : static_cast<const int32_t*>(valid.data)[at];
    return static_cast<int>(given < 1 ? 1 : given > whole ? whole : given);
}

}  // namespace sp_fast::cuda
