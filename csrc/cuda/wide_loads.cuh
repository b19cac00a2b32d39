// Features read and written with one access per lane; only for .cu files.
#pragma once

#include "device.h"

namespace sp_fast::cuda {

// Writes 16 bytes at once; the compiler may split an assignment into four stores.
__device__ __forceinline__ void store_16(void* to, const uint4& value) {
#ifdef SP_FAST_CUDA_ON_CPU
    *static_cast<uint4*>(to) = value;
#else
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
#endif
}

// Sixteen bytes of features. For a Pack of 16-bit elements, the compiler would use one register per element.
template <typename T>
struct Wide {
    static constexpr int kSize = 16 / sizeof(T);
    uint4 words;

    __device__ __forceinline__ unsigned word(int i) const {
        return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
    }
    __device__ __forceinline__ float at(int i) const;
    static __device__ __forceinline__ Wide of(const float (&values)[kSize]);
    __device__ __forceinline__ void write(T* to) const { store_16(to, words); }
};
template <>
__device__ __forceinline__ float Wide<float>::at(int i) const {
    return __uint_as_float(word(i));
}
template <>
__device__ __forceinline__ float Wide<__half>::at(int i) const {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word(i / 2) >> (16 * (i % 2)))));
}
template <>
__device__ __forceinline__ float Wide<__nv_bfloat16>::at(int i) const {
    return __uint_as_float(i % 2 == 0 ? word(i / 2) << 16 : word(i / 2) & 0xffff0000u);
}

template <>
__device__ __forceinline__ Wide<float> Wide<float>::of(const float (&values)[4]) {
    unsigned words[4];
    for (int i = 0; i < 4; ++i) words[i] = __float_as_uint(values[i]);
    return {{words[0], words[1], words[2], words[3]}};
}
template <>
__device__ __forceinline__ Wide<__half> Wide<__half>::of(const float (&values)[8]) {
    unsigned words[4];
    for (int i = 0; i < 4; ++i) {
        words[i] = __half_as_ushort(__float2half_rn(values[2 * i])) |
                   unsigned{__half_as_ushort(__float2half_rn(values[2 * i + 1]))} << 16;
    }
    return {{words[0], words[1], words[2], words[3]}};
}
template <>
__device__ __forceinline__ Wide<__nv_bfloat16> Wide<__nv_bfloat16>::of(const float (&values)[8]) {
    unsigned words[4];
    for (int i = 0; i < 4; ++i) {
        words[i] = __bfloat16_as_ushort(__float2bfloat16_rn(values[2 * i])) |
                   unsigned{__bfloat16_as_ushort(__float2bfloat16_rn(values[2 * i + 1]))} << 16;
    }
    return {{words[0], words[1], words[2], words[3]}};
}

// One element, where alignment does not allow 16 bytes.
template <typename T>
struct Narrow {
    static constexpr int kSize = 1;
    T value;

    __device__ __forceinline__ float at(int) const { return to_float(value); }
    static __device__ __forceinline__ Narrow of(const float (&values)[1]) {
        return Narrow{from_float<T>(values[0])};
    }
    __device__ __forceinline__ void write(T* to) const { *to = value; }
};

}  // namespace sp_fast::cuda
