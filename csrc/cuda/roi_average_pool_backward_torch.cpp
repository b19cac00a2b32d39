#include <ATen/ops/empty.h>

#include "roi_average_pool_backward.cuh"
#include "roi_boxes.h"

namespace sp_fast::cuda {
namespace {

at::Tensor roi_average_pool_backward(const at::Tensor& grad, const at::Tensor& boxes,
                                     const std::optional<at::Tensor>& count, int64_t height, int64_t width,
                                     bool channels_last) {
    check_shape("grad", grad, {-1, -1, -1});
    check_real("grad", grad);
    const CheckedBoxes checked(boxes, count, grad, height, width);
    check_shape("boxes", boxes, {grad.size(0), grad.size(1), 4});
    const OnDevice on(grad);
    const at::Tensor given = grad.contiguous();
    const int64_t batch = given.size(0), channels = given.size(2);
    const auto layout = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    at::Tensor features = at::empty({batch, channels, height, width}, given.options().memory_format(layout));
    launch_roi_average_pool_backward(given.const_data_ptr(), element_of("grad", given), batch, channels,
                                     checked.view, channels_last, multiprocessors(),
                                     features.mutable_data_ptr(), on.stream);
    return features;
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("roi_average_pool_backward", roi_average_pool_backward); }

}  // namespace sp_fast::cuda
