#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "ops.h"
#include "valid_size.h"
#include "vectors.h"

namespace sp_fast {
namespace {

// Channels pooled together, so that the transposed output is written in whole cache lines.
constexpr int64_t kChannels = 16;

struct Window {
    int64_t begin, end;
};

std::vector<Window> windows(int64_t size, int64_t number) {
    std::vector<Window> result(number);
    for (int64_t i = 0; i < number; ++i) {
        result[i] = {i * size / number, ((i + 1) * size + number - 1) / number};
    }
    return result;
}

SP_FAST_CLONES void add_rows(const float* plane, int64_t stride, Window rows, int64_t width, float* total) {
    const float* first = plane + rows.begin * stride;
    for (int64_t x = 0; x < width; ++x) total[x] = first[x];
    for (int64_t y = rows.begin + 1; y < rows.end; ++y) {
        const float* row = plane + y * stride;
        for (int64_t x = 0; x < width; ++x) total[x] += row[x];
    }
}

}  // namespace

at::Tensor pool_seeds(const at::Tensor& features, at::IntArrayRef grid,
                      const std::optional<at::Tensor>& valid) {
    check_features(features);
    TORCH_CHECK_VALUE(!grid.empty() && grid.size() % 2 == 0, "grid: expected pairs H', W', got ", grid);
    int64_t seeds = 0;
    for (size_t g = 0; g < grid.size(); g += 2) {
        TORCH_CHECK_VALUE(grid[g] >= 1 && grid[g + 1] >= 1, "grid: expected sizes of at least 1, got ", grid);
        seeds += grid[g] * grid[g + 1];
    }
    const auto sizes = valid_sizes(features, valid);
    const int64_t batch = features.size(0), channels = features.size(1);
    const int64_t height = features.size(2), width = features.size(3);
    const at::Tensor maps = features.to(at::kFloat).contiguous();
    at::Tensor pooled = at::empty({batch, seeds, channels}, maps.options());
    const float* maps_data = maps.const_data_ptr<float>();
    float* pooled_data = pooled.mutable_data_ptr<float>();

    const int64_t blocks = (channels + kChannels - 1) / kChannels;
    at::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> rows_sum(width), block_seeds(seeds * kChannels);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b = task / blocks, first = task % blocks * kChannels;
            const int64_t number = std::min(kChannels, channels - first);
            int64_t offset = 0;
            for (size_t g = 0; g < grid.size(); g += 2) {
                const auto rows = windows(sizes[b].height, grid[g]);
                const auto columns = windows(sizes[b].width, grid[g + 1]);
                for (int64_t c = 0; c < number; ++c) {
                    const float* plane = maps_data + (b * channels + first + c) * height * width;
                    float* out = block_seeds.data() + offset * kChannels + c;
                    for (const Window& row : rows) {
                        add_rows(plane, width, row, sizes[b].width, rows_sum.data());
                        for (const Window& column : columns) {
                            float total = 0;
                            for (int64_t x = column.begin; x < column.end; ++x) total += rows_sum[x];
                            const int64_t area = (row.end - row.begin) * (column.end - column.begin);
                            *out = total / static_cast<float>(area);
                            out += kChannels;
                        }
                    }
                }
                offset += grid[g] * grid[g + 1];
            }
            for (int64_t m = 0; m < seeds; ++m) {
                std::copy_n(block_seeds.data() + m * kChannels, number,
                            pooled_data + (b * seeds + m) * channels + first);
            }
        }
    });
    return pooled.to(features.scalar_type());
}

}  // namespace sp_fast
