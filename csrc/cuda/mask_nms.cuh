#pragma once

#include "device.h"

namespace sp_fast::cuda {

struct MaskNms {
    const int32_t* words;  // [batch, masks, size]
    const float* score;    // [batch, masks]
    int64_t batch, masks, size;
    double iou_threshold;
    int64_t min_area, max_masks;
    const int64_t* order;  // [batch, masks], best first and NaN last; only read if not sorts()
    int32_t* scratch;      // scratch_size() elements
    int64_t* kept;         // [batch, max_masks]

    // Whether the kernel sorts the masks itself.
    bool sorts() const;
    // `shared_limit`: maximum bytes of shared memory per block.
    int64_t scratch_size(int64_t shared_limit) const;
};

void launch_mask_nms(const MaskNms& nms, int64_t shared_limit, cudaStream_t stream);

}  // namespace sp_fast::cuda
