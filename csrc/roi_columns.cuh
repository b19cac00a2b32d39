// Gradients of a window of columns, written to the rows of a plane by a warp.
#pragma once

#include <type_traits>

#include "cuda_device.h"

namespace sp_fast::cuda {
namespace {

// N columns of a window, read from `values` [kSegments, 33] for one channel at a time and written to rows.
template <typename T, int N>
struct Columns {
    static constexpr int kWindow = 32 * N;
    int at[N];

    __device__ void find(const unsigned char* segment, int columns, int lane) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int column = 32 * i + lane;
            at[i] = column < columns ? segment[column] * 33 : 0;
        }
    }

    __device__ void write(const float* values, T* to, int64_t stride, int rows, int columns, int lane) const {
        T sums[N];
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] = from_float<T>(values[at[i]]);
        to += lane;
        for (int r = 0; r < rows; ++r, to += stride) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (32 * i + lane < columns) to[32 * i] = sums[i];
            }
        }
    }
};

// Two bytes an element: words of two columns, which begin at an even or odd column as the row does in memory.
template <typename T, int N>
struct PairedColumns {
    static constexpr int kWords = N / 2;
    static constexpr int kWindow = 32 * N - 2;
    int before[kWords], even[kWords], odd[kWords];  // columns 2 i - 1, 2 i, 2 i + 1 of word i

    __device__ void find(const unsigned char* segment, int columns, int lane) {
        const auto at = [&](int column) {
            return column >= 0 && column < columns ? segment[column] * 33 : 0;
        };
#pragma unroll
        for (int k = 0; k < kWords; ++k) {
            const int column = 2 * (32 * k + lane);
            before[k] = at(column - 1);
            even[k] = at(column);
            odd[k] = at(column + 1);
        }
    }

    __device__ void write(const float* values, T* to, int64_t stride, int rows, int columns, int lane) const {
        const bool odd_first = reinterpret_cast<uintptr_t>(to) % 4 != 0, both = stride % 2 != 0 && rows > 1;
        Pack<T, 2> words[kWords], shifted[kWords];
#pragma unroll
        for (int k = 0; k < kWords; ++k) {
            const T middle = from_float<T>(values[even[k]]);
            if (both || !odd_first) words[k] = {middle, from_float<T>(values[odd[k]])};
            if (both || odd_first) shifted[k] = {from_float<T>(values[before[k]]), middle};
        }
        for (int r = 0; r < rows; ++r, to += stride) {
            if (reinterpret_cast<uintptr_t>(to) % 4 == 0) {
#pragma unroll
                for (int k = 0; k < kWords; ++k) {
                    const int column = 2 * (32 * k + lane);
                    if (column + 1 < columns) {
                        store<2>(to + column, words[k]);
                    } else if (column < columns) {
                        to[column] = words[k].at[0];
                    }
                }
            } else {
#pragma unroll
                for (int k = 0; k < kWords; ++k) {
                    const int column = 2 * (32 * k + lane);
                    if (column > 0 && column < columns) {
                        store<2>(to + column - 1, shifted[k]);
                    } else if (column == 0) {
                        to[0] = shifted[k].at[1];
                    } else if (column == columns) {
                        to[column - 1] = shifted[k].at[0];
                    }
                }
            }
        }
    }
};

template <typename T, int N>
using ColumnsOf = std::conditional_t<sizeof(T) == 2, PairedColumns<T, N>, Columns<T, N>>;

}  // namespace
}  // namespace sp_fast::cuda
