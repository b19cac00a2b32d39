#pragma once

#include "valid_size.cuh"

namespace sp_fast::cuda {

// Features [batch, channels, height, width] in fp32, fp16 or bf16; strides in elements.
struct FeatureMaps {
    const void* data;
    Element element;
    int64_t batch, channels;
    int height, width;
    int64_t batch_stride, channel_stride, row_stride, column_stride;
    ValidSizes valid;
};

// Calls f with a pointer of the features' type.
template <typename Maps, typename F>
void with_element(const Maps& maps, F f) {
    switch (maps.element) {
        case Element::kFloat:
            return f(static_cast<const float*>(maps.data));
        case Element::kHalf:
            return f(static_cast<const __half*>(maps.data));
        case Element::kBFloat16:
            return f(static_cast<const __nv_bfloat16*>(maps.data));
        case Element::kDouble:
            throw std::invalid_argument("features: no kernel for fp64");
    }
}

}  // namespace sp_fast::cuda
