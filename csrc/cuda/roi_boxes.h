// Checks of boxes, and their descriptors for the CUDA RoI ops.
#pragma once

#include <limits>
#include <optional>

#include "checks.h"
#include "host.h"
#include "roi_boxes.cuh"

namespace sp_fast::cuda {

// Checked, contiguous boxes [B, L, 4] and their count [B] for the maps of an op.
class CheckedBoxes {
  public:
    CheckedBoxes(const at::Tensor& boxes, const std::optional<at::Tensor>& count, const at::Tensor& maps,
                 int64_t height, int64_t width) {
        constexpr int64_t kMost = 1 << 28;
        TORCH_CHECK_VALUE(height >= 1 && width >= 1 && height <= kMost && width <= kMost,
                          "features: expected height and width of at least 1 and at most 2^28, got ", height,
                          " x ", width);
        check_device("boxes", boxes, maps);
        check_shape("boxes", boxes, {maps.size(0), -1, 4});
        check_real("boxes", boxes);
        boxes_ = boxes.contiguous();
        if (count.has_value()) {
            check_device("count", *count, maps);
            check_index("count", *count);
            check_shape("count", *count, {maps.size(0)});
            count_ = count->contiguous();
        }
        view = {boxes_.const_data_ptr(),
                element_of("boxes", boxes_),
                count_.defined() ? count_.const_data_ptr() : nullptr,
                count_.defined() && count_.scalar_type() == at::kLong,
                boxes_.size(1),
                static_cast<int>(height),
                static_cast<int>(width)};
    }

    RoiBoxes view;

  private:
    at::Tensor boxes_, count_;
};

inline int multiprocessors() {
#ifdef SP_FAST_CUDA_ON_CPU
    return 2;
#else
    return at::cuda::getCurrentDeviceProperties()->multiProcessorCount;
#endif
}

// Whether maps are channels-last and not also contiguous.
inline bool is_channels_last(const at::Tensor& maps) {
    return !maps.is_contiguous() && maps.is_contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace sp_fast::cuda
