// Features by one load a lane; for .cu files alone.
#pragma once

#include "cuda_device.h"

namespace sp_fast::cuda {

// Sixteen bytes of features. As a Pack of 16-bit elements the compiler takes a register for each of them.
template <typename T>
struct Wide {
    static constexpr int kSize = 16 / sizeof(T);
    Pack<unsigned, 4> words;

    __device__ __forceinline__ float at(int i) const;
};
template <>
__device__ __forceinline__ float Wide<float>::at(int i) const {
    return __uint_as_float(words.at[i]);
}
template <>
__device__ __forceinline__ float Wide<__half>::at(int i) const {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(words.at[i / 2] >> (16 * (i % 2)))));
}
template <>
__device__ __forceinline__ float Wide<__nv_bfloat16>::at(int i) const {
    return __uint_as_float(i % 2 == 0 ? words.at[i / 2] << 16 : words.at[i / 2] & 0xffff0000u);
}

// One element, where sixteen bytes do not fit.
template <typename T>
struct Narrow {
    static constexpr int kSize = 1;
    T value;

    __device__ __forceinline__ float at(int) const { return to_float(value); }
};

}  // namespace sp_fast::cuda
