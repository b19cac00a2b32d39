// RoI average of channels-last maps: each warp walks along the cells of some channels.
#pragma once

#include <algorithm>

#include "roi_rows.cuh"

namespace sp_fast::cuda {
namespace {

constexpr int kGroupChannels = 64;  // channels of a warp

struct CellShape {
    int groups, passes;
    int64_t chunks, chunk_cells;
    Ring ring;
    int warp_bytes;
};

// The next cells to read: [x, end) of row y.
struct Run {
    int y, x, end;
};

// A warp sums 64 channels over a chunk of consecutive cells: first over the cells of a row that lie in the
// same boxes, then into each of these boxes. Partial sums go to scratch [batch, number, chunks, channels].
template <typename T, bool Paired>
__global__ void __launch_bounds__(kThreads, 4)
    pool_cells(const T* __restrict__ features, RoiBoxes boxes, int64_t batch, int64_t channels,
               CellShape shape, float* __restrict__ scratch) {
    SP_FAST_DYNAMIC_SHARED(all_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = boxes.width;
    int64_t task = int64_t(blockIdx.x) * kWarps + warp;
    const int64_t first_channel = task % shape.groups * kGroupChannels;
    task /= shape.groups;
    const int64_t chunk = task % shape.chunks;
    task /= shape.chunks;
    const int64_t image = task / shape.passes, box = task % shape.passes * 32 + lane;
    if (image >= batch) return;
    unsigned char* shared = all_shared + warp * shape.warp_bytes;
    float* sums = reinterpret_cast<float*>(shared + kStages * shape.ring.slot) + 2 * lane;  // [32, 64]
#pragma unroll
    for (int l = 0; l < 32; ++l) store<2>(sums + l * kGroupChannels, {0.f, 0.f});

    const Cells cells = cells_of(boxes, image, box, real_boxes(boxes, image));
    const int64_t size = int64_t(boxes.height) * width;
    const int64_t begin = chunk * shape.chunk_cells, stop = min(begin + shape.chunk_cells, size);
    const int first_row = static_cast<int>(begin / width), last_row = static_cast<int>((stop - 1) / width);
    const int first_x = static_cast<int>(begin - int64_t(first_row) * width);
    const int last_x = static_cast<int>(stop - int64_t(last_row) * width);
    const int stride = static_cast<int>(channels * static_cast<int64_t>(sizeof(T)));
    const int mine = static_cast<int>(min(int64_t(kGroupChannels), channels - first_channel));
    const int bytes = mine * static_cast<int>(sizeof(T)), pitch = shape.ring.pitch;
    const unsigned char* source =
        reinterpret_cast<const unsigned char*>(features + image * size * channels + first_channel);
    const unsigned char* end = reinterpret_cast<const unsigned char*>(features + batch * size * channels);

    // Moves an empty run to the next cells that lie in a box; false if there are none.
    const auto settle = [&](Run& run) {
        while (run.x >= run.end) {
            int y = run.y + 1;
            if (y > last_row) return false;
            if (!__any_sync(kAllLanes, cells.has_row(y)))
                y = __reduce_min_sync(kAllLanes, cells.y0 > y ? cells.y0 : INT32_MAX);
            if (y > last_row) return false;
            const bool here = cells.has_row(y);
            const int left = __reduce_min_sync(kAllLanes, here ? cells.x0 : INT32_MAX);
            const int right = __reduce_max_sync(kAllLanes, here ? cells.x1 : 0);
            run = {y, y == first_row ? max(left, first_x) : left, y == last_row ? min(right, last_x) : right};
        }
        return true;
    };

    Run ahead = {first_row - 1, 0, 0}, run = ahead;
    int slot_ahead = 0, slot = 0;
    const auto fetch = [&] {
        if (settle(ahead)) {
            const int number = min(shape.ring.rows, ahead.end - ahead.x);
            copy_rows(shared + slot_ahead * shape.ring.slot, pitch,
                      source + (int64_t(ahead.y) * width + ahead.x) * stride, stride, number, bytes, end,
                      lane);
            ahead.x += number;
        }
        copy_commit();
        slot_ahead = slot_ahead + 1 == kStages ? 0 : slot_ahead + 1;
    };

    float low = 0, high = 0;
    unsigned mask = 0;
    int y = -1, segment_end = 0;
    const auto close_segment = [&] {
        for (; mask != 0; mask &= mask - 1) {
            float* at = sums + (__ffs(static_cast<int>(mask)) - 1) * kGroupChannels;
            const auto before = load<2>(at);
            store<2>(at, {before.at[0] + low, before.at[1] + high});
        }
        low = high = 0;
    };

    for (int i = 0; i < kStages - 1; ++i) fetch();
    while (settle(run)) {
        copy_wait<kStages - 2>();
        __syncwarp();
        fetch();
        const int stage_end = run.x + min(shape.ring.rows, run.end - run.x);
        const unsigned char* cell =
            shared + slot * shape.ring.slot +
            reinterpret_cast<uintptr_t>(source + (int64_t(run.y) * width + run.x) * stride) % 16 +
            lane * (Paired ? 2 : 1) * sizeof(T);
        while (run.x < stage_end) {
            if (run.x >= segment_end || run.y != y) {
                close_segment();
                y = run.y;
                const bool here = cells.has_row(y);
                mask = __ballot_sync(kAllLanes, here && cells.has_column(run.x));
                const int cut = here ? cells.column_cut(run.x) : INT32_MAX;
                segment_end = min(__reduce_min_sync(kAllLanes, cut), run.end);
            }
            const int number = min(stage_end, segment_end) - run.x;
            if (mask != 0) {
#pragma unroll 4
                for (int i = 0; i < number; ++i) {
                    const T* at = reinterpret_cast<const T*>(cell + i * pitch);
                    if constexpr (Paired) {
                        if (2 * lane >= mine) continue;
                        const float2 pair = load_pair(at);
                        low += pair.x;
                        high += pair.y;
                    } else {
                        if (lane < mine) low += to_float(at[0]);
                        if (lane + 32 < mine) high += to_float(at[32]);
                    }
                }
            }
            cell += number * pitch;
            run.x += number;
        }
        slot = slot + 1 == kStages ? 0 : slot + 1;
    }
    close_segment();
    copy_wait<0>();

    const int64_t first_cell = int64_t(cells.y0) * width + cells.x0;
    const int64_t last_cell = int64_t(cells.y1 - 1) * width + cells.x1 - 1;
    unsigned touched = __ballot_sync(kAllLanes, cells.y1 > 0 && first_cell < stop && last_cell >= begin);
    for (; touched != 0; touched &= touched - 1) {
        const int l = __ffs(static_cast<int>(touched)) - 1;
        const auto sum = load<2>(sums + l * kGroupChannels);
        float* to = scratch + ((image * boxes.number + box - lane + l) * shape.chunks + chunk) * channels +
                    first_channel;
        const int at = Paired ? 2 * lane : lane, next = Paired ? at + 1 : at + 32;
        if (at < mine) to[at] = sum.at[0];
        if (next < mine) to[next] = sum.at[1];
    }
}

// Sums the chunks of each box, first to last, and divides by the area.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    average_chunks(const float* __restrict__ scratch, RoiBoxes boxes, int64_t channels, int64_t chunks,
                   int64_t chunk_cells, int64_t values, T* __restrict__ out) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= values) return;
    const int64_t row = i / channels, image = row / boxes.number;
    const Cells cells = cells_of(boxes, image, row % boxes.number, real_boxes(boxes, image));
    float total = 0;
    if (cells.y1 > 0) {
        const int64_t first = (int64_t(cells.y0) * boxes.width + cells.x0) / chunk_cells;
        const int64_t last = (int64_t(cells.y1 - 1) * boxes.width + cells.x1 - 1) / chunk_cells;
        const float* from = scratch + row * chunks * channels + i % channels;
#pragma unroll 8
        for (int64_t chunk = first; chunk <= last; ++chunk) total += from[chunk * channels];
        total /= cells.area();
    }
    out[i] = from_float<T>(total);
}

// Chooses enough chunks for eight warps on every multiprocessor.
CellShape cell_shape(const RoiFeatures& maps, const RoiBoxes& boxes, int multiprocessors) {
    CellShape shape = {};
    shape.groups = static_cast<int>(ceil_div(maps.channels, kGroupChannels));
    shape.passes = passes_of(boxes);
    const int64_t size = int64_t(boxes.height) * boxes.width;
    const int64_t tasks = maps.batch * shape.groups * shape.passes;
    const int64_t chunks = std::clamp<int64_t>(multiprocessors * int64_t(8) / tasks, 1, ceil_div(size, 32));
    shape.chunk_cells = ceil_div(size, chunks);
    shape.chunks = ceil_div(size, shape.chunk_cells);
    return shape;
}

template <typename T>
void launch_cells(const T* features, const RoiFeatures& maps, const RoiBoxes& boxes, int multiprocessors,
                  float* scratch, T* out, cudaStream_t stream) {
    CellShape shape = cell_shape(maps, boxes, multiprocessors);
    const int64_t bytes = std::min<int64_t>(maps.channels, kGroupChannels) * int64_t(sizeof(T));
    const int64_t stride = maps.channels * int64_t(sizeof(T));
    const uintptr_t address = reinterpret_cast<uintptr_t>(features);
    const int rows = static_cast<int>(std::clamp<int64_t>(4096 / bytes, 1, 64));
    shape.ring = ring_of(bytes, stride, rows, address % 16 == 0 && stride % 16 == 0);
    if (bytes == stride) shape.ring.pitch = static_cast<int>(bytes);  // cells are copied as one piece
    shape.warp_bytes = kStages * shape.ring.slot + 32 * kGroupChannels * static_cast<int>(sizeof(float));
    const int64_t tasks = maps.batch * shape.passes * shape.chunks * shape.groups;
    const size_t shared = size_t(kWarps) * shape.warp_bytes;
    if (address % (2 * sizeof(T)) == 0 && maps.channels % 2 == 0) {
        SP_FAST_LAUNCH((pool_cells<T, true>), grid_of(tasks, kWarps), kThreads, shared, stream, features,
                       boxes, maps.batch, maps.channels, shape, scratch);
    } else {
        SP_FAST_LAUNCH((pool_cells<T, false>), grid_of(tasks, kWarps), kThreads, shared, stream, features,
                       boxes, maps.batch, maps.channels, shape, scratch);
    }
    const int64_t values = maps.batch * boxes.number * maps.channels;
    SP_FAST_LAUNCH((average_chunks<T>), grid_of(values, kThreads), kThreads, 0, stream, scratch, boxes,
                   maps.channels, shape.chunks, shape.chunk_cells, values, out);
}

}  // namespace
}  // namespace sp_fast::cuda
