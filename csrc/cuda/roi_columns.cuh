// Writes the gradients of a window of columns to the rows of a plane, by a warp.
#pragma once

#include <type_traits>

#include "device.h"

namespace sp_fast::cuda {
namespace {

constexpr int kValuePitch = 33;  // floats from one segment to the next: no bank conflicts

// The value of a segment, at an offset of `at` bytes from segment 0.
__device__ __forceinline__ float value_at(const float* values, int at) {
    return *reinterpret_cast<const float*>(reinterpret_cast<const unsigned char*>(values) + at);
}

// Offset of the value of a column; that of segment 0 for a column outside the window.
__device__ __forceinline__ int place_of(const unsigned char* segment, int column, int columns) {
    if (column < 0 || column >= columns) return 0;
    return segment[column] * kValuePitch * static_cast<int>(sizeof(float));
}

__device__ __forceinline__ unsigned pack_pair(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ __forceinline__ unsigned pack_pair(float low, float high, __half) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

// N columns per lane, four bytes each.
template <typename T, int N>
struct Columns {
    static constexpr int kWindow = 32 * N;
    int at[N];

    __device__ void find(const unsigned char* segment, int columns, int lane) {
#pragma unroll
        for (int i = 0; i < N; ++i) at[i] = place_of(segment, 32 * i + lane, columns);
    }

    __device__ void write(const float* values, T* to, int64_t stride, int rows, int columns, int lane) const {
        float sums[N];
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] = value_at(values, at[i]);
        to += lane;
#pragma unroll 1
        for (int r = 0; r < rows; ++r, to += stride) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (32 * i + lane < columns) to[32 * i] = sums[i];
            }
        }
    }
};

// N columns per lane, two bytes each: words of two columns, which start at an even or odd column depending on
// the alignment of the row, and single columns at the ends.
template <typename T, int N>
struct PairedColumns {
    static constexpr int kWords = N / 2;
    static constexpr int kWindow = 32 * N - 2;
    int before[kWords], even[kWords], odd[kWords];  // columns 2 i - 1, 2 i, 2 i + 1 of word i
    int end;                                        // lane 0: the last column; others: the first

    __device__ void find(const unsigned char* segment, int columns, int lane) {
#pragma unroll
        for (int k = 0; k < kWords; ++k) {
            const int column = 2 * (32 * k + lane);
            before[k] = place_of(segment, column - 1, columns);
            even[k] = place_of(segment, column, columns);
            odd[k] = place_of(segment, column + 1, columns);
        }
        end = place_of(segment, lane == 0 ? columns - 1 : 0, columns);
    }

    __device__ void write(const float* values, T* to, int64_t stride, int rows, int columns, int lane) const {
        const bool first_shifted = reinterpret_cast<uintptr_t>(to) % 4 != 0;
        const bool both = stride % 2 != 0 && rows > 1;
        unsigned words[kWords] = {}, shifted[kWords] = {};
        if (both || !first_shifted) {
#pragma unroll
            for (int k = 0; k < kWords; ++k)
                words[k] = pack_pair(value_at(values, even[k]), value_at(values, odd[k]), T());
        }
        if (both || first_shifted) {
#pragma unroll
            for (int k = 0; k < kWords; ++k)
                shifted[k] = pack_pair(value_at(values, before[k]), value_at(values, even[k]), T());
        }
        const T single = from_float<T>(value_at(values, end));
#pragma unroll 1
        for (int r = 0; r < rows; ++r, to += stride) {
            T* at = to + 2 * lane;
            if (reinterpret_cast<uintptr_t>(to) % 4 == 0) {
#pragma unroll
                for (int k = 0; k < kWords; ++k) {
                    if (64 * k + 2 * lane + 1 < columns) *reinterpret_cast<unsigned*>(at + 64 * k) = words[k];
                }
                if (columns % 2 != 0 && lane == 0) to[columns - 1] = single;
            } else {
#pragma unroll
                for (int k = 0; k < kWords; ++k) {
                    const int column = 64 * k + 2 * lane;
                    if (column > 0 && column < columns)
                        *reinterpret_cast<unsigned*>(at + 64 * k - 1) = shifted[k];
                }
                if (lane == 1) to[0] = single;
                if (columns % 2 == 0 && lane == 0) to[columns - 1] = single;
            }
        }
    }
};

template <typename T, int N>
using ColumnsOf = std::conditional_t<sizeof(T) == 2, PairedColumns<T, N>, Columns<T, N>>;

}  // namespace
}  // namespace sp_fast::cuda
