#include <ATen/ops/empty.h>

#include "roi_average_pool.cuh"
#include "roi_boxes.h"

namespace sp_fast::cuda {
namespace {

at::Tensor roi_average_pool(const at::Tensor& features, const at::Tensor& boxes,
                            const std::optional<at::Tensor>& count) {
    check_shape("features", features, {-1, -1, -1, -1});
    check_real("features", features);
    const CheckedBoxes checked(boxes, count, features, features.size(2), features.size(3));
    const OnDevice on(features);
    const bool channels_last = is_channels_last(features);
    const at::Tensor maps = channels_last ? features : features.contiguous();
    const int64_t batch = maps.size(0), channels = maps.size(1);
    const RoiFeatures view = {maps.const_data_ptr(), element_of("features", maps), batch, channels,
                              channels_last};
    TORCH_CHECK_VALUE(batch * channels <= 1 << 28, "features: expected at most 2^28 planes, got ",
                      maps.sizes());
    at::Tensor pooled = at::empty({batch, checked.view.number, channels}, maps.options());
    const int64_t partial = roi_average_pool_scratch(view, checked.view, multiprocessors());
    at::Tensor scratch;
    if (partial > 0) scratch = at::empty({partial}, maps.options().dtype(at::kFloat));
    launch_roi_average_pool(view, checked.view, multiprocessors(),
                            partial > 0 ? scratch.mutable_data_ptr<float>() : nullptr,
                            pooled.mutable_data_ptr(), on.stream);
    return pooled;
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("roi_average_pool", roi_average_pool); }

}  // namespace sp_fast::cuda
