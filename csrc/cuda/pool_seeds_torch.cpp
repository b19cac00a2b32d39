#include <ATen/ops/empty.h>

#include "feature_maps.h"
#include "pool_seeds.cuh"

namespace sp_fast::cuda {
namespace {

// features [B, D, H, W] -> seeds [B, M, D]
at::Tensor pool_seeds(const at::Tensor& features, at::IntArrayRef grid,
                      const std::optional<at::Tensor>& valid) {
    check_features(features);
    TORCH_CHECK_VALUE(!grid.empty() && grid.size() % 2 == 0, "grid: expected pairs H', W', got ", grid);
    // The kernels compute the ends of windows in 32 bits.
    const auto fits = [](int64_t windows, int64_t size) {
        return windows >= 1 && windows < std::numeric_limits<int32_t>::max() / (size + 1) - 1;
    };
    int64_t number = 0;
    for (size_t g = 0; g < grid.size(); g += 2) {
        TORCH_CHECK_VALUE(fits(grid[g], features.size(2)) && fits(grid[g + 1], features.size(3)),
                          "grid: expected sizes of at least 1 and below 2^31 / (size of the map), got ",
                          grid);
        number += grid[g] * grid[g + 1];
        TORCH_CHECK_VALUE(number <= std::numeric_limits<int32_t>::max(),
                          "grid: expected fewer than 2^31 windows, got ", grid);
    }
    const OnDevice on(features);
    const at::Tensor sizes = checked_valid(valid, features);
    at::Tensor seeds = at::empty({features.size(0), number, features.size(1)}, features.options());
    if (seeds.numel() == 0) return seeds;
    at::Tensor maps = features;
    if (!can_pool_seeds(feature_maps(maps, sizes))) maps = maps.contiguous();
    if (!can_pool_seeds(feature_maps(maps, sizes))) maps = maps.contiguous(at::MemoryFormat::ChannelsLast);
    launch_pool_seeds(feature_maps(maps, sizes), grid.data(), static_cast<int64_t>(grid.size() / 2), number,
                      seeds.mutable_data_ptr(), on.stream);
    return seeds;
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("pool_seeds", pool_seeds); }

}  // namespace sp_fast::cuda
