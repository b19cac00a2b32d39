// Code shared by mask NMS and matrix NMS: counts of common cells on tensor cores, and sorting by score.
#pragma once

#include "device.h"

namespace sp_fast::cuda {

// Compute capability 10.0 and above has no product of bits: the compiler makes each of them eight products of
// bytes and some hundred instructions that split the words. There the words of a whole tile are split once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kByteProducts = true;
#else
constexpr bool kByteProducts = false;
#endif
// Products of bytes count a common cell as 2^k * 2^(3 - k), so masks must have less than 2^28 cells.
constexpr int kByteScale = 3;

// Cells j, j + 8, j + 16 and j + 24 of a row's word, j in 0..3, as four bytes, 2^j where they are inside.
__device__ __forceinline__ unsigned row_bytes(unsigned word, int j) { return word & (0x01010101u << j); }

// The same cells of a column's word, whose bits are reversed within each four, as 2^(3 - j).
__device__ __forceinline__ unsigned column_bytes(unsigned reversed, int j) {
    return reversed & (0x08080808u >> j);
}

// Reverses the bits within each four.
__device__ __forceinline__ unsigned reverse_in_fours(unsigned word) {
    const unsigned in_bytes = __byte_perm(__brev(word), 0, 0x0123);
    return (in_bytes >> 4 & 0x0f0f0f0fu) | (in_bytes << 4 & 0xf0f0f0f0u);
}

#ifdef SP_FAST_CUDA_ON_CPU
// The common cells of two words as products of bytes, which must be those of the bits.
inline int common_in_words(unsigned row, unsigned column) {
    const unsigned reversed = reverse_in_fours(column);
    unsigned sum = 0;
    for (int j = 0; j < 8; ++j) {
        const unsigned x = row_bytes(row >> j / 4 * 4, j % 4), y = column_bytes(reversed >> j / 4 * 4, j % 4);
        for (int byte = 0; byte < 32; byte += 8) sum += (x >> byte & 0xff) * (y >> byte & 0xff);
    }
    const int common = __popc(row & column);
    if (sum != unsigned(common) << kByteScale) on_cpu::fail("products of bytes differ from products of bits");
    return common;
}
#endif

// Adds to `counts` the cells common to 16 masks (rows) and 8 masks (columns) within 256 cells. Lane 4 g + t
// holds two words of rows g and g + 8 in `a` (first words, then second words), the same two words of column g
// in `b`, and the counts of columns 2 t and 2 t + 1 with row g, then with row g + 8. It does not matter which
// words a lane holds, as long as rows and columns agree.
__device__ __forceinline__ void multiply_bits(int (&counts)[4], const unsigned (&a)[4],
                                              const unsigned (&b)[2]) {
#ifdef SP_FAST_CUDA_ON_CPU
    unsigned words[6][32];
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    for (int i = 0; i < 6; i += 2) {
        const uint64_t* pairs = on_cpu::exchange(kAllLanes, mine[i] | uint64_t(mine[i + 1]) << 32);
        for (int lane = 0; lane < 32; ++lane) {
            words[i][lane] = static_cast<unsigned>(pairs[lane]);
            words[i + 1][lane] = static_cast<unsigned>(pairs[lane] >> 32);
        }
    }
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) {
        const int high = i / 2, column = 2 * t + i % 2;
        for (int k = 0; k < 4; ++k) {
            counts[i] += common_in_words(words[high][4 * g + k], words[4][4 * column + k]) +
                         common_in_words(words[2 + high][4 * g + k], words[5][4 * column + k]);
        }
    }
#else
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same for bytes instead of bits: lanes hold and get what they do in `multiply_bits`.
__device__ __forceinline__ void multiply_bytes([[maybe_unused]] int (&counts)[4],
                                               [[maybe_unused]] const unsigned (&a)[4],
                                               [[maybe_unused]] const unsigned (&b)[2]) {
#ifndef SP_FAST_CUDA_ON_CPU
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// `multiply_bits` for a tile, whose counts are times 2^kByteScale with products of bytes.
template <int Rows, int Columns>
__device__ __forceinline__ void add_common(int (&counts)[Rows][Columns][4], unsigned (&a)[Rows][4],
                                           unsigned (&b)[Columns][2]) {
    if constexpr (kByteProducts) {
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
#pragma unroll
            for (int i = 0; i < 2; ++i) b[c][i] = reverse_in_fours(b[c][i]);
        }
        // Unrolled, both halves would not fit in the registers.
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                unsigned of_columns[Columns][2];
#pragma unroll
                for (int c = 0; c < Columns; ++c) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) of_columns[c][i] = column_bytes(b[c][i], j);
                }
#pragma unroll
                for (int r = 0; r < Rows; ++r) {
                    unsigned of_rows[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) of_rows[i] = row_bytes(a[r][i], j);
#pragma unroll
                    for (int c = 0; c < Columns; ++c) multiply_bytes(counts[r][c], of_rows, of_columns[c]);
                }
            }
#pragma unroll
            for (int r = 0; r < Rows; ++r) {
#pragma unroll
                for (int i = 0; i < 4; ++i) a[r][i] >>= 4;
            }
#pragma unroll
            for (int c = 0; c < Columns; ++c) {
#pragma unroll
                for (int i = 0; i < 2; ++i) b[c][i] >>= 4;
            }
        }
    } else {
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
#pragma unroll
            for (int c = 0; c < Columns; ++c) multiply_bits(counts[r][c], a[r], b[c]);
        }
    }
}

// Adds to `counts` the cells common to 16 * Rows masks and 8 * Columns masks, all of `size` words. Each lane
// passes its masks: rows g and g + 8 of each 16, column g of each 8; a null column counts the area of the
// rows. Lane t reads words 8 t .. 8 t + 7 of every 32, so in shared memory rows that are an odd number of
// words apart are read without bank conflicts.
template <int Rows, int Columns>
__device__ __forceinline__ void common_cells(int (&counts)[Rows][Columns][4],
                                             const unsigned* const (&rows)[Rows][2],
                                             const unsigned* const (&columns)[Columns], int size) {
    const int first = threadIdx.x % 4 * 8;
    const auto add = [&](int word, bool inside_0, bool inside_1) {
        unsigned a[Rows][4], b[Columns][2];
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
            b[c][0] = columns[c] == nullptr ? ~0u : inside_0 ? columns[c][word] : 0;
            b[c][1] = columns[c] == nullptr ? ~0u : inside_1 ? columns[c][word + 1] : 0;
        }
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            a[r][0] = inside_0 ? rows[r][0][word] : 0;
            a[r][1] = inside_0 ? rows[r][1][word] : 0;
            a[r][2] = inside_1 ? rows[r][0][word + 1] : 0;
            a[r][3] = inside_1 ? rows[r][1][word + 1] : 0;
        }
        add_common(counts, a, b);
    };
    const auto scale = [&](auto shifted) {
        if constexpr (kByteProducts) {
#pragma unroll
            for (int r = 0; r < Rows; ++r) {
#pragma unroll
                for (int c = 0; c < Columns; ++c) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) counts[r][c][i] = shifted(counts[r][c][i]);
                }
            }
        }
    };
    scale([](int count) { return count << kByteScale; });
    int done = 0;
#pragma unroll 1
    for (; done + 32 <= size; done += 32) {
#pragma unroll(kByteProducts ? 1 : 4)
        for (int i = 0; i < 8; i += 2) add(done + first + i, true, true);
    }
#pragma unroll 1
    for (int i = 0; i < 8 && done + i < size; i += 2) {
        const int word = done + first + i;
        add(word, word < size, word + 1 < size);
    }
    scale([](int count) { return count >> kByteScale; });
}

// Copies a word from global to shared memory without registers; complete after copy_wait and a barrier.
__device__ __forceinline__ void copy_4(unsigned* shared, const unsigned* global) {
#ifdef SP_FAST_CUDA_ON_CPU
    on_cpu::copy_later(shared, global, 4, 4);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
#endif
}

// Sort key: ascending keys order by descending score, equal scores by ascending index, NaN last.
__device__ __forceinline__ uint64_t score_key(float score, unsigned index) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 becomes +0
    const unsigned ascending = bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
    return uint64_t(isnan(score) ? 0xffffffffu : ~ascending) << 32 | index;
}

__device__ __forceinline__ bool is_nan_key(uint64_t key) { return key >> 32 == 0xffffffffu; }

__device__ __forceinline__ void order_pair(uint64_t& low, uint64_t& high) {
    const uint64_t a = low, b = high;
    low = a < b ? a : b;
    high = a < b ? b : a;
}

// Compares every key with that of the lane whose number differs in the bits of `mask`, and keeps one of them.
__device__ __forceinline__ void order_lanes(uint64_t (&keys)[4], int mask, int top) {
    const bool low = (threadIdx.x & top) == 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const uint64_t other = __shfl_xor_sync(kAllLanes, keys[k], mask);
        keys[k] = low == (other < keys[k]) ? other : keys[k];
    }
}

// Orders each key of a lane and that of the opposite lane in another row.
__device__ __forceinline__ void order_opposite(uint64_t& low, uint64_t& high) {
    const uint64_t from_low = __shfl_xor_sync(kAllLanes, low, 31);
    const uint64_t from_high = __shfl_xor_sync(kAllLanes, high, 31);
    low = from_high < low ? from_high : low;
    high = from_low > high ? from_low : high;
}

constexpr int kSortRun = 128;

// Sorts keys in shared memory in ascending order. All threads of the block take part; they have passed a
// barrier since the keys were written, and pass one at the end. This is a bitonic sort in which every
// comparison puts the smaller key first, so missing keys past the end act as the largest and never move.
// Strides below 128 stay within a warp, which holds a run of 128 keys as four rows of 32.
__device__ __forceinline__ void sort_keys(uint64_t* keys, int number) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int size = kSortRun;; size *= 2) {
        if (size > kSortRun) {
            // Both halves of a run of `size` are sorted, so the second one is compared backwards.
            for (int stride = size / 2; stride >= kSortRun; stride /= 2) {
                for (int i = threadIdx.x;; i += blockDim.x) {
                    const int within = i & (stride - 1);
                    const int start = (i - within) * 2;
                    const int low = start + within;
                    if (low >= number) break;
                    const int high = stride == size / 2 ? start + size - 1 - within : low + stride;
                    if (high < number) order_pair(keys[low], keys[high]);
                }
                __syncthreads();
            }
        }
        for (int run = warp * kSortRun; run < number; run += warps * kSortRun) {
            uint64_t held[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int i = run + 32 * k + lane;
                held[k] = i < number ? keys[i] : ~uint64_t(0);
            }
            if (size == kSortRun) {
#pragma unroll 1
                for (int part = 2; part <= 32; part *= 2) {
                    order_lanes(held, part - 1, part / 2);
#pragma unroll 1
                    for (int stride = part / 4; stride > 0; stride /= 2) order_lanes(held, stride, stride);
                }
                order_opposite(held[0], held[1]);
                order_opposite(held[2], held[3]);
#pragma unroll 1
                for (int stride = 16; stride > 0; stride /= 2) order_lanes(held, stride, stride);
                order_opposite(held[0], held[3]);
                order_opposite(held[1], held[2]);
            } else {
                order_pair(held[0], held[2]);
                order_pair(held[1], held[3]);
            }
            order_pair(held[0], held[1]);
            order_pair(held[2], held[3]);
#pragma unroll 1
            for (int stride = 16; stride > 0; stride /= 2) order_lanes(held, stride, stride);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int i = run + 32 * k + lane;
                if (i < number) keys[i] = held[k];
            }
        }
        __syncthreads();
        if (size >= number) break;
    }
}

}  // namespace sp_fast::cuda
