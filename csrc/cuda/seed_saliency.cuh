#pragma once

#include "feature_maps.cuh"

namespace sp_fast::cuda {

// Cells [batch, cells, channels], channels together; strides in elements.
struct CellVectors {
    const void* data;
    Element element;
    int64_t batch, cells, channels, batch_stride, cell_stride;
};

// Similarities [batch, number, pitch] of seeds and cells; beyond height * width cells a row holds anything.
struct Similarities {
    const float* data;
    const float* factors;  // [batch, pitch], of each cell; none: 1
    int64_t batch, number, pitch;
    int height, width;
    ValidSizes valid;  // from the first of these images on
};

// maps -> cells [batch, height * width, pitch] in the maps' type, zeros between channels and pitch. `cells`
// and the pitch are multiples of 16 bytes.
void launch_copy_cells(const FeatureMaps& maps, int64_t pitch, void* cells, cudaStream_t stream);

// 1 / max(norm, 1e-8) of every cell -> factors [batch, pitch]
void launch_cell_factors(const CellVectors& cells, int64_t pitch, float* factors, cudaStream_t stream);

// Normalises every row to [0, 1] over the valid cells -> where that is at least the threshold, words int32
// [batch, number, ceil(cells / 32)], and its mean there, score [batch, number].
void launch_threshold_rows(const Similarities& rows, float threshold, int32_t* words, float* score,
                           cudaStream_t stream);

}  // namespace sp_fast::cuda
