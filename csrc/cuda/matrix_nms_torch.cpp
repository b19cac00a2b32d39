#include <ATen/ops/empty.h>

#include "mask_scores.h"
#include "matrix_nms.cuh"

namespace sp_fast::cuda {
namespace {

at::Tensor matrix_nms(const at::Tensor& words, const at::Tensor& score, bool gaussian, double sigma) {
    check_masks(words, score);
    const OnDevice on(words);
    const at::Tensor cells = words.contiguous();
    const at::Tensor scores = score.to(at::kFloat).contiguous();
    at::Tensor decayed = at::empty(scores.sizes(), scores.options());
    MatrixNms nms{};
    nms.words = cells.const_data_ptr<int32_t>();
    nms.score = scores.const_data_ptr<float>();
    nms.batch = words.size(0);
    nms.masks = words.size(1);
    nms.size = words.size(2);
    nms.gaussian = gaussian;
    nms.sigma = static_cast<float>(sigma);
    nms.decayed = decayed.mutable_data_ptr<float>();
    at::Tensor order;
    if (!nms.sorts()) {
        order = best_first(scores);
        nms.order = order.const_data_ptr<int64_t>();
    }
    const at::Tensor scratch = at::empty({nms.scratch_size()}, words.options());
    nms.scratch = scratch.mutable_data_ptr<int32_t>();
    launch_matrix_nms(nms, on.stream);
    return decayed;
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("matrix_nms", matrix_nms); }

}  // namespace sp_fast::cuda
