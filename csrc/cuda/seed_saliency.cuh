#pragma once

#include "feature_maps.cuh"

namespace sp_fast::cuda {

// Cells [batch, cells, channels] with contiguous channels; strides in elements.
struct CellVectors {
    const void* data;
    Element element;
    int64_t batch, cells, channels, batch_stride, cell_stride;
};

// Similarities [batch, number, pitch] of seeds and cells; a row is undefined past height * width elements.
struct Similarities {
    const float* data;
    const float* factors;  // factor of each cell [batch, pitch]; null: 1
    int64_t batch, number, pitch;
    int height, width;
    ValidSizes valid;  // starts at the first of these images
};

// maps -> cells [batch, height * width, pitch] in the maps' type, zeros from channels to pitch. The address
// of `cells` and the pitch are multiples of 16 bytes.
void launch_copy_cells(const FeatureMaps& maps, int64_t pitch, void* cells, cudaStream_t stream);

// 1 / max(norm, 1e-8) of every cell -> factors [batch, pitch]
void launch_cell_factors(const CellVectors& cells, int64_t pitch, float* factors, cudaStream_t stream);

// Normalises every row to [0, 1] over the valid cells -> words int32 [batch, number, ceil(cells / 32)] of the
// cells at or above the threshold, and their mean, score [batch, number].
void launch_threshold_rows(const Similarities& rows, float threshold, int32_t* words, float* score,
                           cudaStream_t stream);

}  // namespace sp_fast::cuda
