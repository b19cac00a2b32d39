// Boxes of the RoI ops as their kernels see them.
#pragma once

#include "device.h"

namespace sp_fast::cuda {

// Boxes [batch, number, 4], x0 y0 x1 y1 in cells of a map of height x width. Only the first `count` boxes of
// an image are real; null: all.
struct RoiBoxes {
    const void* data;
    Element element;
    const void* count;
    bool count_is_long;
    int64_t number;
    int height, width;
};

// Half-open range of cells. A padding box has no rows and no columns.
struct alignas(16) Cells {
    int x0, y0, x1, y1;

    __device__ bool has_row(int y) const { return y0 <= y && y < y1; }
    __device__ bool has_column(int x) const { return x0 <= x && x < x1; }
    __device__ int64_t cells() const { return int64_t(x1 - x0) * (y1 - y0); }
    __device__ float area() const { return static_cast<float>(cells()); }
    // The first row after `y` at which the box begins or ends.
    __device__ int row_cut(int y) const { return y0 > y ? y0 : y1 > y ? y1 : INT32_MAX; }
    __device__ int column_cut(int x) const { return x0 > x ? x0 : x1 > x ? x1 : INT32_MAX; }
};

__device__ __forceinline__ int64_t real_boxes(const RoiBoxes& boxes, int64_t image) {
    if (boxes.count == nullptr) return boxes.number;
    const int64_t given = boxes.count_is_long ? static_cast<const int64_t*>(boxes.count)[image]
                                              : static_cast<const int32_t*>(boxes.count)[image];
    return given < 0 ? 0 : given < boxes.number ? given : boxes.number;
}

__device__ __forceinline__ double box_side(const RoiBoxes& boxes, int64_t i) {
    switch (boxes.element) {
        case Element::kFloat:
            return static_cast<const float*>(boxes.data)[i];
        case Element::kHalf:
            return to_float(static_cast<const __half*>(boxes.data)[i]);
        case Element::kBFloat16:
            return to_float(static_cast<const __nv_bfloat16*>(boxes.data)[i]);
        default:
            return static_cast<const double*>(boxes.data)[i];
    }
}

// NaN counts as 0.
__device__ __forceinline__ int clamp_side(double side, int low, int high) {
    if (side != side) side = 0;
    return side <= low ? low : side >= high ? high : static_cast<int>(side);
}

// `real`: number of real boxes of the image.
__device__ __forceinline__ Cells cells_of(const RoiBoxes& boxes, int64_t image, int64_t box, int64_t real) {
    if (box >= real) return {0, 0, 0, 0};
    const int64_t first = (image * boxes.number + box) * 4;
    Cells cells;
    cells.x0 = clamp_side(floor(box_side(boxes, first)), 0, boxes.width - 1);
    cells.y0 = clamp_side(floor(box_side(boxes, first + 1)), 0, boxes.height - 1);
    cells.x1 = clamp_side(ceil(box_side(boxes, first + 2)), cells.x0 + 1, boxes.width);
    cells.y1 = clamp_side(ceil(box_side(boxes, first + 3)), cells.y0 + 1, boxes.height);
    return cells;
}

}  // namespace sp_fast::cuda
