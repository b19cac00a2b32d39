// Prefetching of feature rows to shared memory, for both kernels of the RoI average.
#pragma once

#include <algorithm>

#include "roi_average_pool.cuh"

namespace sp_fast::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 3;  // slots of each warp's ring

// A warp's ring of kStages slots; each has `rows` rows that are `pitch` bytes apart.
struct Ring {
    int rows, pitch, slot;
};

// Copies `bytes` bytes to the slot; this lane copies 16 bytes at each of first, first + step, ... Addresses
// keep their remainder modulo 16; nothing is read from `end` on.
__device__ __forceinline__ void copy_piece(unsigned char* to, const unsigned char* from, int bytes, int first,
                                           int step, const unsigned char* end) {
    const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16);
    const bool inside = end - from >= bytes + 16;
    int left = skew + bytes - first;
    from += first - skew;
    to += first - skew;
    if (inside) {
#pragma unroll 4
        for (; left > 0; left -= step, from += step, to += step) copy_16(to, from);
    } else {
#pragma unroll 1
        for (; left > 0; left -= step, from += step, to += step) {
            copy_16(to, from, static_cast<int>(min(end - from, int64_t(16))));
        }
    }
}

// Copies rows of `bytes` bytes, `stride` apart, to the slot. `pitch` and `stride` have the same remainder
// modulo 16; contiguous rows are copied as one piece.
__device__ __forceinline__ void copy_rows(unsigned char* slot, int pitch, const unsigned char* from,
                                          int stride, int rows, int bytes, const unsigned char* end,
                                          int lane) {
    slot += reinterpret_cast<uintptr_t>(from) % 16;
    if (pitch == stride) {
        copy_piece(slot, from, (rows - 1) * pitch + bytes, 16 * lane, 512, end);
        return;
    }
    const int shift = min(5, 32 - __clz((bytes + 30) / 16 - 1));  // 2^shift lanes copy a row
    const int first = (lane & ((1 << shift) - 1)) * 16;
    for (int r = lane >> shift; r < rows; r += 32 >> shift) {
        copy_piece(slot + r * pitch, from + int64_t(r) * stride, bytes, first, 16 << shift, end);
    }
}

// Loads two elements at once, from an address that is a multiple of their size.
template <typename T>
__device__ __forceinline__ float2 load_pair(const T* from) {
    const auto pair = load<2>(from);
    return {to_float(pair.at[0]), to_float(pair.at[1])};
}
template <>
__device__ __forceinline__ float2 load_pair(const __nv_bfloat16* from) {
    const unsigned pair = *reinterpret_cast<const unsigned*>(from);
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

int passes_of(const RoiBoxes& boxes) { return static_cast<int>(ceil_div(boxes.number, 32)); }

unsigned grid_of(int64_t tasks, int per_block) { return static_cast<unsigned>(ceil_div(tasks, per_block)); }

// A ring for rows of at most `bytes` bytes that are `stride` apart in memory.
Ring ring_of(int64_t bytes, int64_t stride, int rows, bool aligned) {
    int64_t pitch = ceil_div(bytes, 16) * 16;
    // Leave room for the rest of the first and last 16 bytes.
    if (!aligned) pitch = bytes + 30 + ((stride - bytes - 30) % 16 + 16) % 16;
    const int64_t slot = ceil_div(rows * pitch + 32, 16) * 16;
    return {rows, static_cast<int>(pitch), static_cast<int>(slot)};
}

}  // namespace
}  // namespace sp_fast::cuda
