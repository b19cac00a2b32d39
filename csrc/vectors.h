// Reductions over contiguous rows in explicit SIMD lanes: the order of a sum depends only on its length, so
// results depend neither on threads nor on alignment.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// One copy of a function per instruction set, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(SP_FAST_SINGLE_VERSION)
#define SP_FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SP_FAST_CLONES
#endif
// Code that must be compiled with the instruction set of the clone that calls it.
#define SP_FAST_INLINE inline __attribute__((always_inline))

namespace sp_fast {

template <typename T>
struct Lanes {
    // Vectors of 32 bytes: for AVX2, GCC passes wider ones through memory, which makes `dot` five times as
    // slow.
    static constexpr int64_t kSize = 32 / sizeof(T);
    typedef T Vector __attribute__((vector_size(32)));
};

// Vectors are passed by reference, since their ABI by value depends on the instruction set.
template <typename T>
SP_FAST_INLINE void load(typename Lanes<T>::Vector& vector, const T* from) {
    std::memcpy(&vector, from, sizeof(vector));
}

template <typename T>
SP_FAST_INLINE T sum_lanes(const typename Lanes<T>::Vector& vector) {
    T lanes[Lanes<T>::kSize];
    std::memcpy(lanes, &vector, sizeof(vector));
    for (int64_t half = Lanes<T>::kSize / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

template <typename T>
SP_FAST_INLINE T dot(const T* a, const T* b, int64_t n) {
    constexpr int64_t kLanes = Lanes<T>::kSize;
    // Several sums at a time, since a single one would wait for each addition.
    constexpr int64_t kSums = 4;
    typename Lanes<T>::Vector sums[kSums] = {}, x, y;
    int64_t i = 0;
    for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
        for (int64_t k = 0; k < kSums; ++k) {
            load(x, a + i + k * kLanes);
            load(y, b + i + k * kLanes);
            sums[k] += x * y;
        }
    }
    for (; i + kLanes <= n; i += kLanes) {
        load(x, a + i);
        load(y, b + i);
        sums[0] += x * y;
    }
    T rest = 0;
    for (; i < n; ++i) rest += a[i] * b[i];
    sums[0] += sums[1];
    sums[2] += sums[3];
    sums[0] += sums[2];
    return sum_lanes<T>(sums[0]) + rest;
}

template <typename T>
SP_FAST_INLINE T norm(const T* a, int64_t n) {
    return std::sqrt(dot(a, a, n));
}

// Smallest norm by which a vector is divided; COSINE_EPS of reference.py.
constexpr double kCosineEps = 1e-8;

// a / max(|a|, eps); NaN is kept.
template <typename T>
SP_FAST_INLINE void normalize(const T* a, int64_t n, T* out) {
    const T length = norm(a, n);
    const T divisor = length < T(kCosineEps) ? T(kCosineEps) : length;
    for (int64_t i = 0; i < n; ++i) out[i] = a[i] / divisor;
}

}  // namespace sp_fast
