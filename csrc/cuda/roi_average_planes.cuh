// RoI average of contiguous maps: each warp walks down the rows of a plane.
#pragma once

#include <algorithm>

#include "roi_rows.cuh"

namespace sp_fast::cuda {
namespace {

// The column sums that a box needs: columns [x0, x1) of the rows [from, to).
struct alignas(16) Window {
    int x0, x1, from, to;
};

// Sums a window with eight lanes.
template <bool Narrow>
__device__ __forceinline__ float sum_window(const float* sums, int pitch, const Window& window, int lane) {
    float parts[4] = {};
    if constexpr (Narrow) {
#pragma unroll 1
        for (int x = window.x0 + lane; x < window.x1; x += 8) {
#pragma unroll 1
            for (int row = window.from; row < window.to; row += 4) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (row + j < window.to) parts[j] += sums[(row + j) * pitch + x];
                }
            }
        }
    } else {
#pragma unroll 1
        for (int row = window.from; row < window.to; ++row) {
            const float* at = sums + row * pitch + window.x0 + lane;
            int left = window.x1 - window.x0 - lane;
#pragma unroll 1
            for (; left > 24; left -= 32, at += 32) {
#pragma unroll
                for (int j = 0; j < 4; ++j) parts[j] += at[8 * j];
            }
#pragma unroll
            for (int j = 0; j < 3; ++j) {
                if (left > 8 * j) parts[j] += at[8 * j];
            }
        }
    }
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

struct PlaneShape {
    int warps_per_plane;
    Ring ring;
    int bands, sums_pitch;  // shape of the column sums [bands + 1, sums_pitch]
    int warp_bytes;         // shared memory of a warp
};

// A warp walks down the rows of a plane [height, width] and sums each of its N * 32 columns over a band: rows
// that lie in the same boxes. After several bands, their sums and the total of these are added to the boxes.
template <typename T, int N, bool Paired>
__device__ __forceinline__ float sum_plane(const T* plane, const unsigned char* end, const Cells& cells,
                                           int width, int part, const PlaneShape& shape,
                                           unsigned char* shared) {
    constexpr int kColumns = 32 * N;
    const int lane = threadIdx.x % 32;
    Window* windows = reinterpret_cast<Window*>(shared);  // [32]
    shared += 32 * sizeof(Window);
    float* sums = reinterpret_cast<float*>(shared + kStages * shape.ring.slot);
    const bool real = cells.y1 > 0;
    const int top = __reduce_min_sync(kAllLanes, real ? cells.y0 : INT32_MAX);
    const int bottom = __reduce_max_sync(kAllLanes, cells.y1);
    if (bottom == 0) return 0;
    const int rows_per_part = (bottom - top + shape.warps_per_plane - 1) / shape.warps_per_plane;
    const int begin = top + part * rows_per_part, stop = min(begin + rows_per_part, bottom);
    int left = __reduce_min_sync(kAllLanes, real ? cells.x0 : INT32_MAX) & ~1;
    int right = min((__reduce_max_sync(kAllLanes, cells.x1) + 1) & ~1, width);
    if (width <= kColumns && right - left > width - width / 8) {
        left = 0;  // whole rows are copied as one piece
        right = width;
    }
    const int stride = width * static_cast<int>(sizeof(T));

    // The first row from y on that lies in a box.
    const auto next_row = [&](int y) {
        if (__any_sync(kAllLanes, cells.has_row(y))) return y;
        return __reduce_min_sync(kAllLanes, cells.y0 > y ? cells.y0 : INT32_MAX);
    };

    float total = 0;
    for (int tile = left; tile < right; tile += kColumns) {
        const int columns = min(kColumns, right - tile);
        const int bytes = columns * static_cast<int>(sizeof(T));
        const int pitch = columns == width ? bytes : shape.ring.pitch;
        const unsigned char* source = reinterpret_cast<const unsigned char*>(plane + tile);
        const int x0 = max(cells.x0 - tile, 0), x1 = min(cells.x1 - tile, columns);

        int ahead = begin, slot_ahead = 0;
        const auto fetch = [&] {
            ahead = next_row(ahead);
            if (ahead < stop) {
                const int rows = min(shape.ring.rows, stop - ahead);
                copy_rows(shared + slot_ahead * shape.ring.slot, pitch, source + int64_t(ahead) * stride,
                          stride, rows, bytes, end, lane);
                ahead += rows;
            }
            copy_commit();
            slot_ahead = slot_ahead + 1 == kStages ? 0 : slot_ahead + 1;
        };

        float band[N] = {}, all[N] = {};
        unsigned mask = 0;
        int bands = 0, from = 0, to = 0;  // the bands of this lane's box
        const auto put = [&](const float (&values)[N], int row) {
            float* at = sums + row * shape.sums_pitch;
#pragma unroll
            for (int i = 0; i < N; i += 2) {
                if constexpr (Paired) {
                    if (32 * i + 2 * lane < columns)
                        store<2>(at + 32 * i + 2 * lane, {values[i], values[i + 1]});
                } else {
                    if (32 * i + lane < columns) at[32 * i + lane] = values[i];
                    if (32 * i + 32 + lane < columns) at[32 * i + 32 + lane] = values[i + 1];
                }
            }
        };
        // Lanes without a column read past the row; their sums are not used.
        const auto add_row = [&](const T* at) {
#pragma unroll
            for (int i = 0; i < N; i += 2) {
                if constexpr (Paired) {
                    const float2 pair = load_pair(at + 32 * i);
                    band[i] += pair.x;
                    band[i + 1] += pair.y;
                } else {
                    band[i] += to_float(at[32 * i]);
                    band[i + 1] += to_float(at[32 * i + 32]);
                }
            }
        };
        const auto flush = [&] {
            put(all, shape.bands);
            const bool whole = from == 0 && to == bands;
            const unsigned in_all = __ballot_sync(kAllLanes, whole && to > 0);
            const unsigned in_some = __ballot_sync(kAllLanes, !whole && to > 0);
            const unsigned lower = (1u << lane) - 1;
            // Group the boxes that need the same number of rows.
            const int rank = whole ? __popc(in_all & lower) : __popc(in_all) + __popc(in_some & lower);
            const int number = __popc(in_all | in_some);
            if (to > 0) {
                windows[rank] =
                    whole ? Window{x0, x1, shape.bands, shape.bands + 1} : Window{x0, x1, from, to};
            }
            __syncwarp();
            for (int first = 0; first < number; first += 4) {
                const int i = first + lane / 8;
                const Window window = i < number ? windows[i] : Window{0, 0, 0, 0};
                float sum = sum_window<(N <= 2)>(sums, shape.sums_pitch, window, lane % 8);
#pragma unroll
                for (int by = 4; by > 0; by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
                sum = __shfl_sync(kAllLanes, sum, (rank - first) * 8 & 31);
                if (to > 0 && rank / 4 == first / 4) total += sum;
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < N; ++i) all[i] = 0;
            bands = from = to = 0;
        };
        const auto close_band = [&] {
            if (mask == 0) return;
            put(band, bands);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                all[i] += band[i];
                band[i] = 0;
            }
            if (mask >> lane & 1) {
                if (to == 0) from = bands;
                to = bands + 1;
            }
            ++bands;
        };

#pragma unroll 1
        for (int i = 0; i < kStages - 1; ++i) fetch();
        int y = next_row(begin), band_end = 0, stage_end = 0, slot = 0;
        const unsigned char* row = shared;
        while (true) {
            if (y >= band_end || y >= stop) {
                close_band();
                if (bands == shape.bands || (bands > 0 && y >= stop)) flush();
                if (y >= stop) break;
                mask = __ballot_sync(kAllLanes, cells.has_row(y));
                band_end = min(__reduce_min_sync(kAllLanes, cells.row_cut(y)), stop);
            }
            if (y >= stage_end) {
                copy_wait<kStages - 2>();
                __syncwarp();
                fetch();
                stage_end = y + min(shape.ring.rows, stop - y);
                row = shared + slot * shape.ring.slot +
                      reinterpret_cast<uintptr_t>(source + int64_t(y) * stride) % 16 +
                      lane * (Paired ? 2 : 1) * sizeof(T);
                slot = slot + 1 == kStages ? 0 : slot + 1;
            }
            const int rows = min(stage_end, band_end) - y;
            if (mask != 0) {
#pragma unroll 1
                for (int r = 0; r < rows; ++r) add_row(reinterpret_cast<const T*>(row + r * pitch));
            }
            row += rows * pitch;
            y += rows;
            if (y == stage_end) y = next_row(y);
        }
        copy_wait<0>();
    }
    return total;
}

template <typename T, int N, bool Paired>
__global__ void __launch_bounds__(kThreads, 4)
    pool_planes(const T* __restrict__ features, RoiBoxes boxes, int channels, int planes, int passes,
                PlaneShape shape, T* __restrict__ out) {
    SP_FAST_DYNAMIC_SHARED(shared);
    float* totals = reinterpret_cast<float*>(shared + kWarps * shape.warp_bytes);  // [kWarps, 32]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int planes_per_block = kWarps / shape.warps_per_plane;
    const int plane = static_cast<int>(blockIdx.x / passes) * planes_per_block + warp / shape.warps_per_plane;
    const int image = plane / channels;
    const int64_t box = int64_t(blockIdx.x % passes) * 32 + lane;
    const int part = warp % shape.warps_per_plane;
    Cells cells = {0, 0, 0, 0};
    float total = 0;
    if (plane < planes) {
        const int64_t size = int64_t(boxes.height) * boxes.width;
        cells = cells_of(boxes, image, box, real_boxes(boxes, image));
        total = sum_plane<T, N, Paired>(features + plane * size,
                                        reinterpret_cast<const unsigned char*>(features + planes * size),
                                        cells, boxes.width, part, shape, shared + warp * shape.warp_bytes);
    }
    totals[threadIdx.x] = total;
    __syncthreads();
    if (plane >= planes || part != 0 || box >= boxes.number) return;
    for (int i = 1; i < shape.warps_per_plane; ++i) total += totals[threadIdx.x + 32 * i];
    out[(image * boxes.number + box) * channels + plane % channels] =
        from_float<T>(cells.y1 > 0 ? total / cells.area() : 0);
}

template <typename T, int N, bool Paired>
void launch_planes(const T* features, const RoiFeatures& maps, const RoiBoxes& boxes, T* out,
                   cudaStream_t stream) {
    const int64_t stride = boxes.width * int64_t(sizeof(T)), plane_bytes = boxes.height * stride;
    const int64_t columns = std::min<int64_t>(boxes.width, 32 * N), bytes = columns * int64_t(sizeof(T));
    const int64_t most = sizeof(T) == 4 ? 2800 : 2304;  // bytes of a stage
    PlaneShape shape;
    shape.warps_per_plane = plane_bytes <= 4096 ? 1 : plane_bytes <= 16384 ? 2 : 4;
    const int rows = static_cast<int>(std::clamp<int64_t>(most / (bytes + 45), 1, 32));
    shape.ring = ring_of(bytes, stride, rows, false);
    shape.ring.slot += static_cast<int>(ceil_div(32 * N * int64_t(sizeof(T)) - bytes, 16) * 16);
    shape.sums_pitch = static_cast<int>(ceil_div(columns, 2) * 2);
    const int64_t sums_bytes = shape.sums_pitch * int64_t(sizeof(float));
    shape.bands = static_cast<int>(std::clamp<int64_t>(6720 / sums_bytes - 1, 3, 31));
    shape.warp_bytes = static_cast<int>(
        ceil_div(32 * sizeof(Window) + kStages * shape.ring.slot + (shape.bands + 1) * sums_bytes, 16) * 16);
    const int64_t planes = maps.batch * maps.channels;
    const int passes = passes_of(boxes);
    const unsigned blocks = grid_of(planes * shape.warps_per_plane, kWarps) * passes;
    const size_t shared = kWarps * (shape.warp_bytes + 32 * sizeof(float));
    SP_FAST_LAUNCH((pool_planes<T, N, Paired>), blocks, kThreads, shared, stream, features, boxes,
                   maps.channels, planes, passes, shape, out);
}

template <typename T, bool Paired>
void launch_planes(const T* features, const RoiFeatures& maps, const RoiBoxes& boxes, T* out,
                   cudaStream_t stream) {
    if (boxes.width <= 64) {
        launch_planes<T, 2, Paired>(features, maps, boxes, out, stream);
    } else if (boxes.width <= 128) {
        launch_planes<T, 4, Paired>(features, maps, boxes, out, stream);
    } else if (boxes.width <= 192) {
        launch_planes<T, 6, Paired>(features, maps, boxes, out, stream);
    } else {
        launch_planes<T, 12, Paired>(features, maps, boxes, out, stream);
    }
}

}  // namespace
}  // namespace sp_fast::cuda
