#pragma once

#include "device.h"

namespace sp_fast::cuda {

struct MatrixNms {
    const int32_t* words;  // [batch, masks, size]
    const float* score;    // [batch, masks]
    int64_t batch, masks, size;
    bool gaussian;
    float sigma;
    const int64_t* order;  // [batch, masks], best first and NaN last; only read if not sorts()
    int32_t* scratch;      // scratch_size() elements
    float* decayed;        // [batch, masks]

    // Whether the kernels sort the masks themselves.
    bool sorts() const;
    int64_t scratch_size() const;
};

void launch_matrix_nms(const MatrixNms& nms, cudaStream_t stream);

}  // namespace sp_fast::cuda
