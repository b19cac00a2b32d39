#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "ops.h"
#include "valid_size.h"
#include "vectors.h"

namespace sp_fast {
namespace {

// Channels pooled together: the lanes of a vector.
constexpr int64_t kChannels = 8;

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

// Sums one plane over the rows of each window, into every kChannels-th of sums [windows, width, kChannels].
// Works on one plane at a time, so that memory is read sequentially.
SP_FAST_CLONES void add_rows(const float* plane, int64_t stride, const std::vector<Window>& rows,
                             int64_t width, float* sums) {
    constexpr int64_t kLanes = Lanes<float>::kSize;
    for (const Window& window : rows) {
        const float* first = plane + window.begin * stride;
        const float* end = plane + window.end * stride;
        int64_t x = 0;
        for (; x + kLanes <= width; x += kLanes) {
            Lanes<float>::Vector total = {}, part;
            for (const float* row = first; row < end; row += stride) {
                load(part, row + x);
                total += part;
            }
            float lanes[kLanes];
            std::memcpy(lanes, &total, sizeof(total));
            for (int64_t k = 0; k < kLanes; ++k) sums[(x + k) * kChannels] = lanes[k];
        }
        for (; x < width; ++x) {
            float total = 0;
            for (const float* row = first; row < end; row += stride) total += row[x];
            sums[x * kChannels] = total;
        }
        sums += width * kChannels;
    }
}

// Averages the sums over each window of columns, out [windows, kChannels].
SP_FAST_CLONES void average_columns(const float* sums, const std::vector<Window>& columns, int64_t rows,
                                    float* out) {
    for (const Window& column : columns) {
        float total[kChannels] = {};
        for (int64_t x = column.begin; x < column.end; ++x) {
            for (int64_t c = 0; c < kChannels; ++c) total[c] += sums[x * kChannels + c];
        }
        const float area = static_cast<float>(rows * (column.end - column.begin));
        for (int64_t c = 0; c < kChannels; ++c) out[c] = total[c] / area;
        out += kChannels;
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
        std::vector<float> sums, block_seeds(seeds * kChannels);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b = task / blocks, first = task % blocks * kChannels;
            const int64_t number = std::min(kChannels, channels - first);
            const float* planes = maps_data + (b * channels + first) * height * width;
            float* out = block_seeds.data();
            for (size_t g = 0; g < grid.size(); g += 2) {
                const auto columns = windows(sizes[b].width, grid[g + 1]);
                const auto rows = windows(sizes[b].height, grid[g]);
                const int64_t columns_size = sizes[b].width * kChannels;
                sums.resize(rows.size() * columns_size);
                for (int64_t c = 0; c < number; ++c) {
                    add_rows(planes + c * height * width, width, rows, sizes[b].width, sums.data() + c);
                }
                for (size_t i = 0; i < rows.size(); ++i) {
                    average_columns(sums.data() + i * columns_size, columns, rows[i].end - rows[i].begin,
                                    out);
                    out += grid[g + 1] * kChannels;
                }
            }
            for (int64_t m = 0; m < seeds; ++m) {
                std::copy_n(&block_seeds[m * kChannels], number,
                            pooled_data + (b * seeds + m) * channels + first);
            }
        }
    });
    return pooled.to(features.scalar_type());
}

}  // namespace sp_fast
