// Checks of feature maps, and their descriptors for the CUDA kernels.
#pragma once

#include <limits>
#include <optional>

#include "checks.h"
#include "feature_maps.cuh"
#include "host.h"

namespace sp_fast::cuda {

// Checks that features are [B, D, H, W] in fp32, fp16 or bf16.
inline void check_features(const at::Tensor& features) {
    check_shape("features", features, {-1, -1, -1, -1});
    check_real("features", features);
    TORCH_CHECK_TYPE(features.scalar_type() != at::kDouble,
                     "features: expected dtype float32, float16 or bfloat16, got float64");
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 32;
    TORCH_CHECK_VALUE(
        features.size(2) >= 1 && features.size(3) >= 1 && features.size(2) <= kMost / features.size(3),
        "features: expected height and width of at least 1 and fewer than 2^31 cells, got ",
        features.sizes());
}

// valid [B, 2], contiguous, or none.
inline at::Tensor checked_valid(const std::optional<at::Tensor>& valid, const at::Tensor& features) {
    if (!valid.has_value()) return {};
    check_device("valid", *valid, features);
    check_index("valid", *valid);
    check_shape("valid", *valid, {features.size(0), 2});
    return valid->contiguous();
}

// Describes the maps; `valid` is the result of checked_valid. Both tensors must outlive the descriptor.
inline FeatureMaps feature_maps(const at::Tensor& features, const at::Tensor& valid) {
    ValidSizes sizes = {nullptr, false};
    if (valid.defined()) sizes = {valid.const_data_ptr(), valid.scalar_type() == at::kLong};
    return {features.const_data_ptr(),
            element_of("features", features),
            features.size(0),
            features.size(1),
            static_cast<int>(features.size(2)),
            static_cast<int>(features.size(3)),
            features.stride(0),
            features.stride(1),
            features.stride(2),
            features.stride(3),
            sizes};
}

}  // namespace sp_fast::cuda
