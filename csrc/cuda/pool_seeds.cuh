#pragma once

#include "feature_maps.cuh"

namespace sp_fast::cuda {

// Whether launch_pool_seeds reads maps of these strides efficiently.
bool can_pool_seeds(const FeatureMaps& maps);

// grid: H', W' of each of `grids` grids, flat -> seeds [batch, number, channels] in the features' type,
// number = sum of H' W'
void launch_pool_seeds(const FeatureMaps& maps, const int64_t* grid, int64_t grids, int64_t number,
                       void* seeds, cudaStream_t stream);

}  // namespace sp_fast::cuda
