#pragma once

#include "device.h"

namespace sp_fast::cuda {

// Masks, and their parts.
struct ConnectedParts {
    const int32_t* words;  // [masks, size]
    int64_t masks, size;
    int height, width;
    int64_t max_parts, min_area;
    bool diagonal;     // whether cells that share only a corner are connected
    int32_t* scratch;  // scratch_size(...), unless shared memory is enough
    int32_t* out;      // [masks, max_parts, size]
    int64_t* count;    // [masks]

    // Number of int32 that `scratch` needs.
    int64_t scratch_size(int64_t shared_limit) const;
};

void launch_connected_parts(const ConnectedParts& of, int64_t shared_limit, cudaStream_t stream);

}  // namespace sp_fast::cuda
