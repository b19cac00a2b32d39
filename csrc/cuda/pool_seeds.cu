#include <algorithm>
#include <type_traits>

#include "pool_seeds.cuh"
#include "wide_loads.cuh"

namespace sp_fast::cuda {
namespace {

// Number of grids per launch.
constexpr int kGrids = 16;

// For division of a number below 2^31 by a number known before the launch.
struct Divisor {
    unsigned number, multiplier, shift;
};

Divisor divisor(int64_t number) {
    unsigned bits = 0;
    while (int64_t{1} << bits < number) ++bits;
    const uint64_t multiplier = ((uint64_t{1} << (31 + bits)) + number - 1) / number;
    return {static_cast<unsigned>(number), static_cast<unsigned>(multiplier), bits - 1};
}

__device__ __forceinline__ unsigned divide(unsigned a, const Divisor& by) {
    return by.number == 1 ? a : __umulhi(a, by.multiplier) >> by.shift;
}

// Each block handles a tile of windows of a grid; the tiles of all grids are numbered consecutively.
struct Grid {
    int rows, columns;
    int64_t first_seed;
    int first_tile, tile_rows, tile_columns;
    bool whole_block;  // whether a block handles a single window
    Divisor by_rows, by_columns, tiles_across;
};

struct Grids {
    int number, tiles;
    Divisor by_tiles;
    Grid at[kGrids];
};

__device__ __forceinline__ int grid_of(const Grids& grids, int tile) {
    int g = 0;
    while (g + 1 < grids.number && tile >= grids.at[g + 1].first_tile) ++g;
    return g;
}

struct Range {
    int begin, end;
};

// Range of the i-th of by.number windows of adaptive average pooling.
__device__ __forceinline__ Range window(int i, int size, const Divisor& by) {
    return {static_cast<int>(divide(static_cast<unsigned>(i * size), by)),
            static_cast<int>(divide(static_cast<unsigned>((i + 1) * size) + by.number - 1, by))};
}

// Channels last: each lane owns N channels; each warp handles a window or, if there are few, a 16th of one.

constexpr int kCellWarps = 16;
constexpr int kCellThreads = 32 * kCellWarps;
// Loads in flight per lane: as many as 64 registers hold.
constexpr int kLoads = 8;

// Adds cells [first, last) of a window, numbered row by row.
template <typename Load, typename T>
__device__ __forceinline__ void add_cells(const T* window, int across, int64_t row_stride,
                                          int64_t column_stride, int first, int last,
                                          float (&sums)[Load::kSize]) {
    int column = first;
    const T* at = window;
    if (first > 0) {
        const int row = first / across;
        column = first - row * across;
        at += row * row_stride + column * column_stride;
    }
    const int64_t to_next_row = row_stride - (across - 1) * column_stride;
    for (int cell = first; cell < last; cell += kLoads) {
        Load values[kLoads];
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
            if (cell + k < last) values[k] = *reinterpret_cast<const Load*>(at);
            ++column;
            at += column == across ? to_next_row : column_stride;
            column = column == across ? 0 : column;
        }
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
            if (cell + k < last) {
#pragma unroll
                for (int c = 0; c < Load::kSize; ++c) sums[c] += values[k].at(c);
            }
        }
    }
}

// Neighbouring windows share cells. A block handles a tile of them, so that shared cells come from its cache.
template <typename T, typename Load>
__global__ void __launch_bounds__(kCellThreads, 2)
    pool_cells_kernel(const __grid_constant__ FeatureMaps maps, const __grid_constant__ Grids grids,
                      int64_t first_image, int64_t number, T* __restrict__ seeds) {
    constexpr int N = Load::kSize;
    __shared__ float partial[kCellWarps][32 * N];
    const unsigned group = divide(blockIdx.x, grids.by_tiles);
    const int tile = static_cast<int>(blockIdx.x - group * grids.tiles);
    const Grid& grid = grids.at[grid_of(grids, tile)];
    const int64_t image = first_image + blockIdx.y;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    const int local = tile - grid.first_tile;
    int i = static_cast<int>(divide(local, grid.tiles_across));
    int j = local - i * static_cast<int>(grid.tiles_across.number);
    if (!grid.whole_block) {
        i = i * grid.tile_rows + warp / grid.tile_columns;
        j = j * grid.tile_columns + warp % grid.tile_columns;
        if (i >= grid.rows || j >= grid.columns) return;
    }
    const Range rows = window(i, valid_extent(maps.valid, image, 0, maps.height), grid.by_rows);
    const Range columns = window(j, valid_extent(maps.valid, image, 1, maps.width), grid.by_columns);
    const int across = columns.end - columns.begin, cells = (rows.end - rows.begin) * across;
    const int64_t first_channel = static_cast<int64_t>(group) * 32 * N, channel = first_channel + lane * N;
    const T* from = static_cast<const T*>(maps.data) + image * maps.batch_stride +
                    rows.begin * maps.row_stride + columns.begin * maps.column_stride + channel;
    T* to = seeds + (image * number + grid.first_seed + int64_t(i) * grid.columns + j) * maps.channels;

    float sums[N] = {};
    if (!grid.whole_block) {
        if (channel >= maps.channels) return;
        add_cells<Load>(from, across, maps.row_stride, maps.column_stride, 0, cells, sums);
        if (cells > 1) {
#pragma unroll
            for (int c = 0; c < N; ++c) sums[c] /= static_cast<float>(cells);
        }
        Load::of(sums).write(to + channel);
        return;
    }
    if (channel < maps.channels) {
        const int share = (cells + kCellWarps - 1) / kCellWarps, first = min(warp * share, cells);
        add_cells<Load>(from, across, maps.row_stride, maps.column_stride, first, min(first + share, cells),
                        sums);
    }
#pragma unroll
    for (int c = 0; c < N; ++c) partial[warp][lane * N + c] = sums[c];
    __syncthreads();
    const int mine = threadIdx.x;
    if (mine >= 32 * N || first_channel + mine >= maps.channels) return;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kCellWarps; ++w) sum += partial[w][mine];
    to[first_channel + mine] = from_float<T>(sum / static_cast<float>(cells));
}

// Planes: lanes are columns for the sums down a window, then channels for the sums across it.

constexpr int kPlanes = 32;  // channels per block
constexpr int kPlaneWarps = 8;
constexpr int kPlaneThreads = 32 * kPlaneWarps;
constexpr int kPlanesPerWarp = kPlanes / kPlaneWarps;
constexpr int kStrip = 4;         // rows of windows per block
constexpr int kRows = 4;          // rows of cells in flight
constexpr int kPlaneWidth = 383;  // maximum width for 48 KB of shared memory

template <typename T>
__global__ void __launch_bounds__(kPlaneThreads)
    pool_planes_kernel(const __grid_constant__ FeatureMaps maps, const __grid_constant__ Grids grids,
                       int64_t first_image, int64_t number, T* __restrict__ seeds) {
    SP_FAST_DYNAMIC_SHARED(bytes);
    float* const sums = reinterpret_cast<float*>(bytes);  // [kPlanes, pitch]
    const int pitch = maps.width | 1;                     // odd: a column's channels are in different banks
    const unsigned group = divide(blockIdx.x, grids.by_tiles);
    const int tile = static_cast<int>(blockIdx.x - group * grids.tiles);
    const Grid& grid = grids.at[grid_of(grids, tile)];
    const int64_t image = first_image + blockIdx.y;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int height = valid_extent(maps.valid, image, 0, maps.height);
    const int width = valid_extent(maps.valid, image, 1, maps.width);

    const int64_t first_channel = static_cast<int64_t>(group) * kPlanes;
    const T* planes[kPlanesPerWarp];
#pragma unroll
    for (int k = 0; k < kPlanesPerWarp; ++k) {
        // Past the last channel: the last one again; its result is not used.
        const int64_t channel = min(first_channel + warp * kPlanesPerWarp + k, maps.channels - 1);
        planes[k] =
            static_cast<const T*>(maps.data) + image * maps.batch_stride + channel * maps.channel_stride;
    }
    const int64_t channel = first_channel + lane;
    const int first_row = (tile - grid.first_tile) * kStrip;
    for (int i = first_row; i < min(first_row + kStrip, grid.rows); ++i) {
        const Range rows = window(i, height, grid.by_rows);
        for (int x = lane; x < width; x += 32) {
            float down[kPlanesPerWarp] = {};
            for (int y = rows.begin; y < rows.end; y += kRows) {
                T values[kRows][kPlanesPerWarp];
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    const int64_t at = min(y + r, rows.end - 1) * maps.row_stride + x;
#pragma unroll
                    for (int k = 0; k < kPlanesPerWarp; ++k) values[r][k] = planes[k][at];
                }
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    if (y + r < rows.end) {
#pragma unroll
                        for (int k = 0; k < kPlanesPerWarp; ++k) down[k] += to_float(values[r][k]);
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < kPlanesPerWarp; ++k) {
                sums[(warp * kPlanesPerWarp + k) * pitch + x] = down[k];
            }
        }
        __syncthreads();
        T* to = seeds + (image * number + grid.first_seed + int64_t(i) * grid.columns) * maps.channels;
        for (int j = warp; channel < maps.channels && j < grid.columns; j += kPlaneWarps) {
            const Range columns = window(j, width, grid.by_columns);
            float sum = 0;
            for (int x = columns.begin; x < columns.end; ++x) sum += sums[lane * pitch + x];
            const int cells = (rows.end - rows.begin) * (columns.end - columns.begin);
            if (cells > 1) sum /= static_cast<float>(cells);
            to[j * maps.channels + channel] = from_float<T>(sum);
        }
        __syncthreads();
    }
}

bool channels_last(const FeatureMaps& maps) { return maps.channels == 1 || maps.channel_stride == 1; }

bool is_wide(const FeatureMaps& maps, int64_t wide) {
    bool all = reinterpret_cast<uintptr_t>(maps.data) % 16 == 0;
    for (const int64_t n : {maps.channels, maps.batch_stride, maps.row_stride, maps.column_stride}) {
        all = all && n % wide == 0;
    }
    return all;
}

int at_most(int64_t limit, int64_t n) {
    int result = 1;
    while (2 * result <= limit && 2 * result <= n) result *= 2;
    return result;
}

// Divides a grid into tiles of windows for pool_cells_kernel, or into strips of rows for pool_planes_kernel.
void add_grid(Grids& grids, int64_t rows, int64_t columns, int64_t first_seed, bool cells) {
    Grid& grid = grids.at[grids.number];
    grid.rows = static_cast<int>(rows);
    grid.columns = static_cast<int>(columns);
    grid.first_seed = first_seed;
    grid.first_tile = grids.tiles;
    grid.by_rows = divisor(rows);
    grid.by_columns = divisor(columns);
    // Depends only on the grid, so that an image padded in a batch gives the same bits as alone.
    grid.whole_block = cells && rows * columns < 64;
    grid.tile_columns = at_most(4, columns);
    grid.tile_rows = at_most(kCellWarps / grid.tile_columns, rows);
    grid.tile_columns = kCellWarps / grid.tile_rows;
    if (grid.whole_block) grid.tile_rows = grid.tile_columns = 1;
    const int64_t across = cells ? ceil_div(columns, grid.tile_columns) : 1;
    const int64_t down = ceil_div(rows, cells ? grid.tile_rows : kStrip);
    grid.tiles_across = divisor(across);
    grids.tiles += static_cast<int>(across * down);
    ++grids.number;
}

template <typename T>
void launch(const FeatureMaps& maps, Grids& grids, int64_t number, T* seeds, cudaStream_t stream) {
    grids.by_tiles = divisor(grids.tiles);
    const bool cells = channels_last(maps), wide = is_wide(maps, Wide<T>::kSize);
    const int64_t per_block = cells ? 32 * (wide ? Wide<T>::kSize : 1) : kPlanes;
    const int64_t blocks = ceil_div(maps.channels, per_block) * grids.tiles;
    if (blocks > INT32_MAX) throw std::runtime_error("pool_seeds: too many channels and grid cells");
    for (int64_t image = 0; image < maps.batch; image += 65535) {
        const dim3 grid(static_cast<unsigned>(blocks),
                        static_cast<unsigned>(std::min<int64_t>(maps.batch - image, 65535)));
        if (!cells) {
            const size_t shared = sizeof(float) * kPlanes * (maps.width | 1);
            SP_FAST_LAUNCH((pool_planes_kernel<T>), grid, kPlaneThreads, shared, stream, maps, grids, image,
                           number, seeds);
        } else if (wide) {
            SP_FAST_LAUNCH((pool_cells_kernel<T, Wide<T>>), grid, kCellThreads, 0, stream, maps, grids, image,
                           number, seeds);
        } else {
            SP_FAST_LAUNCH((pool_cells_kernel<T, Narrow<T>>), grid, kCellThreads, 0, stream, maps, grids,
                           image, number, seeds);
        }
    }
}

}  // namespace

bool can_pool_seeds(const FeatureMaps& maps) {
    return channels_last(maps) || ((maps.width == 1 || maps.column_stride == 1) && maps.width <= kPlaneWidth);
}

void launch_pool_seeds(const FeatureMaps& maps, const int64_t* grid, int64_t grids, int64_t number,
                       void* seeds, cudaStream_t stream) {
    int64_t seed = 0;
    for (int64_t g = 0; g < grids;) {
        Grids some = {};
        for (; g < grids && some.number < kGrids; ++g) {
            add_grid(some, grid[2 * g], grid[2 * g + 1], seed, channels_last(maps));
            seed += grid[2 * g] * grid[2 * g + 1];
        }
        with_element(maps, [&](auto* from) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
            launch(maps, some, number, static_cast<T*>(seeds), stream);
        });
    }
}

}  // namespace sp_fast::cuda
