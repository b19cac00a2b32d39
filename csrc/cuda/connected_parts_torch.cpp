#include "connected_parts.cuh"
#include "mask_parts.h"
#include "mask_scores.h"

namespace sp_fast::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> connected_parts(const at::Tensor& words, int64_t height, int64_t width,
                                                   int64_t max_parts, int64_t min_area,
                                                   int64_t connectivity) {
    const OnDevice on(words);
    MaskParts parts = empty_parts(words, height, width, max_parts, min_area, connectivity);
    TORCH_CHECK_VALUE(parts.shape.number < int64_t(1) << 31, "words: expected fewer than 2^31 masks, got ",
                      parts.shape.number);
    const at::Tensor bits = words.contiguous();
    ConnectedParts of{};
    of.words = bits.const_data_ptr<int32_t>();
    of.masks = parts.shape.number;
    of.size = parts.shape.words();
    of.height = static_cast<int>(height);
    of.width = static_cast<int>(width);
    of.max_parts = max_parts;
    of.min_area = min_area;
    of.diagonal = connectivity == 8;
    of.out = parts.words.mutable_data_ptr<int32_t>();
    of.count = parts.count.mutable_data_ptr<int64_t>();
    const int64_t limit = shared_limit();
    const at::Tensor scratch = at::empty({of.scratch_size(limit)}, words.options());
    of.scratch = scratch.mutable_data_ptr<int32_t>();
    launch_connected_parts(of, limit, on.stream);
    return {parts.words, parts.count};
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("connected_parts", connected_parts); }

}  // namespace sp_fast::cuda
