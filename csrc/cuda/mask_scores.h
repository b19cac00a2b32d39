// Packed masks and their scores on the GPU: checks, order, and the size of shared memory.
#pragma once

#include <ATen/ops/sort.h>

#include "host.h"
#include "mask_shapes.h"

namespace sp_fast::cuda {

inline void check_masks(const at::Tensor& words, const at::Tensor& score) {
    check_scored_masks(words, score);
    check_device("score", score, words);
    constexpr int64_t kMost = (int64_t(1) << 31) - 1;
    TORCH_CHECK_VALUE(words.size(0) <= kMost && words.size(1) <= kMost && words.size(2) <= kMost,
                      "words: expected sizes below 2^31, got ", words.sizes());
}

// Order by descending score, equal scores by ascending index, NaN last: int64 [B, M].
inline at::Tensor best_first(const at::Tensor& score) {
    return std::get<1>(at::sort(score.neg(), /*stable=*/true, /*dim=*/1, /*descending=*/false)).contiguous();
}

// Maximum bytes of shared memory per block on the current device.
inline int64_t shared_limit() {
#ifdef SP_FAST_CUDA_ON_CPU
    return 227 << 10;
#else
    return static_cast<int64_t>(at::cuda::getCurrentDeviceProperties()->sharedMemPerBlockOptin);
#endif
}

}  // namespace sp_fast::cuda
