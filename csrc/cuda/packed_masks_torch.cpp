#include <ATen/ops/empty.h>

#include "checks.h"
#include "host.h"
#include "mask_shapes.h"
#include "packed_masks.cuh"

namespace sp_fast::cuda {
namespace {

at::Tensor pack_masks(const at::Tensor& masks) {
    const MaskShape shape = shape_of_masks(masks);
    const OnDevice on(masks);
    const at::Tensor cells = masks.contiguous();
    at::Tensor words = at::empty(shape.with(shape.words()), masks.options().dtype(at::kInt));
    launch_pack_masks(cells.const_data_ptr<bool>(), shape.number, shape.cells(),
                      words.mutable_data_ptr<int32_t>(), on.stream);
    return words;
}

at::Tensor unpack_masks(const at::Tensor& words, int64_t height, int64_t width) {
    const MaskShape shape = shape_of_words(words, height, width);
    const OnDevice on(words);
    const at::Tensor bits = words.contiguous();
    at::Tensor masks = at::empty(shape.with(height, width), words.options().dtype(at::kBool));
    launch_unpack_masks(bits.const_data_ptr<int32_t>(), shape.number, shape.cells(),
                        masks.mutable_data_ptr<bool>(), on.stream);
    return masks;
}

at::Tensor mask_areas(const at::Tensor& words) {
    check_words(words);
    const OnDevice on(words);
    const at::Tensor bits = words.contiguous();
    at::Tensor areas = at::empty(words.sizes().slice(0, words.dim() - 1), words.options());
    launch_mask_areas(bits.const_data_ptr<int32_t>(), areas.numel(), words.size(-1),
                      areas.mutable_data_ptr<int32_t>(), on.stream);
    return areas;
}

at::Tensor mask_boxes(const at::Tensor& words, int64_t height, int64_t width) {
    const MaskShape shape = shape_of_words(words, height, width);
    const OnDevice on(words);
    const at::Tensor bits = words.contiguous();
    at::Tensor boxes = at::empty(shape.with(4), words.options());
    launch_mask_boxes(bits.const_data_ptr<int32_t>(), shape.number, shape.words(), width,
                      boxes.mutable_data_ptr<int32_t>(), on.stream);
    return boxes;
}

}  // namespace

SP_FAST_CUDA_OPS(m) {
    m.impl("pack_masks", pack_masks);
    m.impl("unpack_masks", unpack_masks);
    m.impl("mask_areas", mask_areas);
    m.impl("mask_boxes", mask_boxes);
}

}  // namespace sp_fast::cuda
