#pragma once

#include "device.h"

namespace sp_fast::cuda {

// bool [masks, cells] -> words int32 [masks, ceil(cells / 32)]
void launch_pack_masks(const bool* cells_inside, int64_t masks, int64_t cells, int32_t* words,
                       cudaStream_t stream);

// words int32 [masks, ceil(cells / 32)] -> bool [masks, cells]
void launch_unpack_masks(const int32_t* words, int64_t masks, int64_t cells, bool* cells_inside,
                         cudaStream_t stream);

// words int32 [masks, words_per_mask] -> int32 [masks]
void launch_mask_areas(const int32_t* words, int64_t masks, int64_t words_per_mask, int32_t* areas,
                       cudaStream_t stream);

// words int32 [masks, words_per_mask], rows of `width` cells -> x0 y0 x1 y1 int32 [masks, 4]
void launch_mask_boxes(const int32_t* words, int64_t masks, int64_t words_per_mask, int64_t width,
                       int32_t* boxes, cudaStream_t stream);

}  // namespace sp_fast::cuda
