#include "packed_masks.cuh"

namespace sp_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Packs four bytes to four bits: 1 where a byte is not 0.
__device__ __forceinline__ unsigned bits_of(unsigned bytes) {
    const unsigned high = (((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bytes) & 0x80808080u;
    return ((high >> 7) * 0x01020408u) >> 24;
}

// Unpacks four bits to four bytes of 0 or 1.
__device__ __forceinline__ unsigned bytes_of(unsigned bits) {
    return ((bits & 0xfu) * 0x00204081u) & 0x01010101u;
}

// If masks have a multiple of 32 cells, all of them are one long row: each thread makes one word.
__global__ void __launch_bounds__(kThreads)
    pack_aligned(const unsigned char* __restrict__ cells, int64_t words, int32_t* __restrict__ out) {
    const int64_t word = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (word >= words) return;
    unsigned result = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const auto bytes = load<4>(reinterpret_cast<const unsigned*>(cells + word * 32 + half * 16));
#pragma unroll
        for (int k = 0; k < 4; ++k) result |= bits_of(bytes.at[k]) << (16 * half + 4 * k);
    }
    out[word] = static_cast<int32_t>(result);
}

__global__ void __launch_bounds__(kThreads)
    unpack_aligned(const int32_t* __restrict__ words, int64_t number, unsigned char* __restrict__ cells) {
    const int64_t word = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (word >= number) return;
    const unsigned bits = static_cast<unsigned>(words[word]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Pack<unsigned, 4> bytes;
#pragma unroll
        for (int k = 0; k < 4; ++k) bytes.at[k] = bytes_of(bits >> (16 * half + 4 * k));
        store<4>(reinterpret_cast<unsigned*>(cells + word * 32 + half * 16), bytes);
    }
}

// Any number of cells per mask: each warp makes 32 words with one cell per lane, so that reads are coalesced.
__global__ void __launch_bounds__(kThreads)
    pack_any(const unsigned char* __restrict__ cells, int64_t number, int64_t words, int64_t tiles,
             int64_t tasks, int32_t* __restrict__ out) {
    const int64_t task = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (task >= tasks) return;
    const int64_t mask = task / tiles, first = task % tiles * 32;
    const unsigned char* row = cells + mask * number;
    unsigned mine = 0;
#pragma unroll 8
    for (int k = 0; k < 32; ++k) {
        const int64_t cell = (first + k) * 32 + lane;
        const unsigned word = __ballot_sync(kAllLanes, cell < number && row[cell] != 0);
        if (lane == k) mine = word;
    }
    if (first + lane < words) out[mask * words + first + lane] = static_cast<int32_t>(mine);
}

__global__ void __launch_bounds__(kThreads)
    unpack_any(const int32_t* __restrict__ words, int64_t number, int64_t words_per_mask, int64_t tiles,
               int64_t tasks, unsigned char* __restrict__ cells) {
    const int64_t task = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (task >= tasks) return;
    const int64_t mask = task / tiles, first = task % tiles * 32;
    unsigned char* row = cells + mask * number;
    const bool inside = first + lane < words_per_mask;
    const unsigned mine = inside ? words[mask * words_per_mask + first + lane] : 0;
#pragma unroll 8
    for (int k = 0; k < 32; ++k) {
        const unsigned word = __shfl_sync(kAllLanes, mine, k);
        const int64_t cell = (first + k) * 32 + lane;
        if (cell < number) row[cell] = word >> lane & 1;
    }
}

__global__ void __launch_bounds__(kThreads)
    areas_kernel(const int32_t* __restrict__ words, int64_t masks, int64_t words_per_mask,
                 int32_t* __restrict__ areas) {
    const int64_t mask = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (mask >= masks) return;
    const int32_t* row = words + mask * words_per_mask;
    unsigned area = 0;
#pragma unroll 4
    for (int64_t j = lane; j < words_per_mask; j += 32) area += __popc(row[j]);
    area = __reduce_add_sync(kAllLanes, area);
    if (lane == 0) areas[mask] = static_cast<int32_t>(area);
}

__global__ void __launch_bounds__(kThreads)
    boxes_kernel(const int32_t* __restrict__ words, int64_t masks, int64_t words_per_mask, int64_t width,
                 int32_t* __restrict__ boxes) {
    const int64_t mask = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (mask >= masks) return;
    const int32_t* row = words + mask * words_per_mask;
    int x0 = INT32_MAX, y0 = INT32_MAX, x1 = 0, y1 = 0;
    for (int64_t j = lane; j < words_per_mask; j += 32) {
        unsigned bits = static_cast<unsigned>(row[j]);
        // One iteration for each row of the mask that the word covers.
        while (bits != 0) {
            const int64_t cell = j * 32 + __ffs(static_cast<int>(bits)) - 1;
            const int64_t y = cell / width, end = (y + 1) * width - j * 32;
            const unsigned here = end < 32 ? bits & ((1u << end) - 1) : bits;
            bits ^= here;
            x0 = min(x0, static_cast<int>(cell - y * width));
            x1 = max(x1, static_cast<int>(j * 32 + 32 - __clz(static_cast<int>(here)) - y * width));
            y0 = min(y0, static_cast<int>(y));
            y1 = max(y1, static_cast<int>(y + 1));
        }
    }
    x0 = __reduce_min_sync(kAllLanes, x0);
    y0 = __reduce_min_sync(kAllLanes, y0);
    x1 = __reduce_max_sync(kAllLanes, x1);
    y1 = __reduce_max_sync(kAllLanes, y1);
    if (lane == 0) store<4>(boxes + mask * 4, {x1 > 0 ? x0 : 0, y1 > 0 ? y0 : 0, x1, y1});
}

unsigned blocks_for(int64_t tasks, int per_block) {
    return static_cast<unsigned>(ceil_div(tasks, per_block));
}

}  // namespace

void launch_pack_masks(const bool* cells_inside, int64_t masks, int64_t cells, int32_t* words,
                       cudaStream_t stream) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(cells_inside);
    const int64_t words_per_mask = ceil_div(cells, 32), number = masks * words_per_mask;
    if (number == 0) return;
    if (cells % 32 == 0 && reinterpret_cast<uintptr_t>(bytes) % 16 == 0) {
        SP_FAST_LAUNCH(pack_aligned, blocks_for(number, kThreads), kThreads, 0, stream, bytes, number, words);
        return;
    }
    const int64_t tiles = ceil_div(words_per_mask, 32), tasks = masks * tiles;
    SP_FAST_LAUNCH(pack_any, blocks_for(tasks, kWarps), kThreads, 0, stream, bytes, cells, words_per_mask,
                   tiles, tasks, words);
}

void launch_unpack_masks(const int32_t* words, int64_t masks, int64_t cells, bool* cells_inside,
                         cudaStream_t stream) {
    auto* bytes = reinterpret_cast<unsigned char*>(cells_inside);
    const int64_t words_per_mask = ceil_div(cells, 32), number = masks * words_per_mask;
    if (number == 0) return;
    if (cells % 32 == 0) {
        SP_FAST_LAUNCH(unpack_aligned, blocks_for(number, kThreads), kThreads, 0, stream, words, number,
                       bytes);
        return;
    }
    const int64_t tiles = ceil_div(words_per_mask, 32), tasks = masks * tiles;
    SP_FAST_LAUNCH(unpack_any, blocks_for(tasks, kWarps), kThreads, 0, stream, words, cells, words_per_mask,
                   tiles, tasks, bytes);
}

void launch_mask_areas(const int32_t* words, int64_t masks, int64_t words_per_mask, int32_t* areas,
                       cudaStream_t stream) {
    if (masks == 0) return;
    SP_FAST_LAUNCH(areas_kernel, blocks_for(masks, kWarps), kThreads, 0, stream, words, masks, words_per_mask,
                   areas);
}

void launch_mask_boxes(const int32_t* words, int64_t masks, int64_t words_per_mask, int64_t width,
                       int32_t* boxes, cudaStream_t stream) {
    if (masks == 0) return;
    SP_FAST_LAUNCH(boxes_kernel, blocks_for(masks, kWarps), kThreads, 0, stream, words, masks, words_per_mask,
                   width, boxes);
}

}  // namespace sp_fast::cuda
