#include <ATen/ops/empty.h>

#include "mask_nms.cuh"
#include "mask_scores.h"

namespace sp_fast::cuda {
namespace {

at::Tensor mask_nms(const at::Tensor& words, const at::Tensor& score, double iou_threshold, int64_t min_area,
                    int64_t max_masks) {
    check_masks(words, score);
    TORCH_CHECK_VALUE(max_masks >= 1, "max_masks: expected at least 1, got ", max_masks);
    const OnDevice on(words);
    const at::Tensor cells = words.contiguous();
    const at::Tensor scores = score.to(at::kFloat).contiguous();
    at::Tensor kept = at::empty({words.size(0), max_masks}, words.options().dtype(at::kLong));
    MaskNms nms{};
    nms.words = cells.const_data_ptr<int32_t>();
    nms.score = scores.const_data_ptr<float>();
    nms.batch = words.size(0);
    nms.masks = words.size(1);
    nms.size = words.size(2);
    nms.iou_threshold = iou_threshold;
    nms.min_area = min_area;
    nms.max_masks = max_masks;
    nms.kept = kept.mutable_data_ptr<int64_t>();
    at::Tensor order;
    if (!nms.sorts()) {
        order = best_first(scores);
        nms.order = order.const_data_ptr<int64_t>();
    }
    const int64_t limit = shared_limit();
    const at::Tensor scratch = at::empty({nms.scratch_size(limit)}, words.options());
    nms.scratch = scratch.mutable_data_ptr<int32_t>();
    launch_mask_nms(nms, limit, on.stream);
    return kept;
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("mask_nms", mask_nms); }

}  // namespace sp_fast::cuda
