// The part of each feature map without padding.
#pragma once

#include <vector>

#include "checks.h"

namespace sp_fast {

struct ValidSize {
    int64_t height, width;
};

// Valid size of every image of features [B, D, H, W].
inline std::vector<ValidSize> valid_sizes(const at::Tensor& features,
                                          const std::optional<at::Tensor>& valid) {
    const int64_t batch = features.size(0), height = features.size(2), width = features.size(3);
    TORCH_CHECK_VALUE(height >= 1 && width >= 1, "features: expected height and width of at least 1, got ",
                      features.sizes());
    std::vector<ValidSize> sizes(batch, ValidSize{height, width});
    if (!valid.has_value()) return sizes;
    check_cpu("valid", *valid);
    check_index("valid", *valid);
    check_shape("valid", *valid, {batch, 2});
    const at::Tensor given = valid->to(at::kLong).contiguous();
    const int64_t* data = given.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b) {
        sizes[b] = {data[2 * b], data[2 * b + 1]};
        TORCH_CHECK_VALUE(sizes[b].height >= 1 && sizes[b].height <= height,
                          "valid: expected heights in [1, ", height, "], got ", sizes[b].height);
        TORCH_CHECK_VALUE(sizes[b].width >= 1 && sizes[b].width <= width, "valid: expected widths in [1, ",
                          width, "], got ", sizes[b].width);
    }
    return sizes;
}

// Checks that features are [B, D, H, W] in fp32, fp16 or bf16 on the CPU.
inline void check_features(const at::Tensor& features) {
    check_cpu("features", features);
    check_shape("features", features, {-1, -1, -1, -1});
    check_real("features", features);
    TORCH_CHECK_TYPE(features.scalar_type() != at::kDouble,
                     "features: expected dtype float32, float16 or bfloat16, got float64");
}

}  // namespace sp_fast
