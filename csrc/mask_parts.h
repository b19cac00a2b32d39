// Arguments and results of connected_parts, on any device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "mask_shapes.h"

namespace sp_fast {

// Cells, areas and ranks are 32-bit integers in the kernels.
constexpr int64_t kMostCells = int64_t(1) << 30;

struct MaskParts {
    MaskShape shape;
    at::Tensor words;  // int32 [..., max_parts, W32]
    at::Tensor count;  // int64 [...]
};

// Checks the arguments and allocates the results.
inline MaskParts empty_parts(const at::Tensor& words, int64_t height, int64_t width, int64_t max_parts,
                             int64_t min_area, int64_t connectivity) {
    const MaskShape shape = shape_of_words(words, height, width);
    TORCH_CHECK_VALUE(shape.cells() <= kMostCells, "height, width: expected at most 2^30 cells, got ", height,
                      " x ", width);
    TORCH_CHECK_VALUE(max_parts >= 1 && max_parts <= kMostCells,
                      "max_parts: expected a number in [1, 2^30], got ", max_parts);
    TORCH_CHECK_VALUE(min_area >= 0, "min_area: expected at least 0, got ", min_area);
    TORCH_CHECK_VALUE(connectivity == 4 || connectivity == 8, "connectivity: expected 4 or 8, got ",
                      connectivity);
    return {shape, at::empty(shape.with(max_parts, shape.words()), words.options()),
            at::empty(shape.leading, words.options().dtype(at::kLong))};
}

}  // namespace sp_fast
