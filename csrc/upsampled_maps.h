// Maps upsampled bilinearly by 2 (cell centres aligned), one row of the small map at a time, and the
// functions of their cells. Row y of a map of width w stands for the cells (2 y + i, 2 x + j), i and j in {0,
// 1}, held as four contiguous rows [i][j][w]: a quad. So neither upsampling nor its adjoint shuffles lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace sp_fast {

// The three rows of a map that the quad of row y depends on; at the borders, row y itself stands in.
template <typename T>
struct ThreeRows {
    T *above, *here, *below;
    ThreeRows(T* map, int64_t y, int64_t height, int64_t width)
        : above(map + (y > 0 ? y - 1 : y) * width),
          here(map + y * width),
          below(map + (y + 1 < height ? y + 1 : y) * width) {}
};

// Writes the quad of one row; `padded` is scratch of width + 2.
template <typename T>
SP_FAST_INLINE void upsample_row(const ThreeRows<const T>& rows, int64_t width, T* __restrict padded,
                                 T* __restrict quad) {
    for (int64_t i = 0; i < 2; ++i) {
        const T* far = i == 0 ? rows.above : rows.below;
        for (int64_t x = 0; x < width; ++x) padded[x + 1] = T(0.25) * far[x] + T(0.75) * rows.here[x];
        padded[0] = padded[1];
        padded[width + 1] = padded[width];
        T* even = quad + 2 * i * width;
        T* odd = even + width;
        for (int64_t x = 0; x < width; ++x) even[x] = T(0.25) * padded[x] + T(0.75) * padded[x + 1];
        for (int64_t x = 0; x < width; ++x) odd[x] = T(0.75) * padded[x + 1] + T(0.25) * padded[x + 2];
    }
}

// Adds the gradient of a quad to the gradients of the rows that it depends on: the adjoint of upsample_row.
template <typename T>
SP_FAST_INLINE void add_to_rows(const T* __restrict quad, int64_t width, T* __restrict padded,
                                const ThreeRows<T>& rows) {
    for (int64_t i = 0; i < 2; ++i) {
        const T* even = quad + 2 * i * width;
        const T* odd = even + width;
        for (int64_t x = 0; x < width; ++x) padded[x] = T(0.75) * (even[x] + odd[x]);
        for (int64_t x = 1; x < width; ++x) padded[x] += T(0.25) * odd[x - 1];
        for (int64_t x = 1; x < width; ++x) padded[x - 1] += T(0.25) * even[x];
        padded[0] += T(0.25) * even[0];
        padded[width - 1] += T(0.25) * odd[width - 1];
        T* far = i == 0 ? rows.above : rows.below;
        for (int64_t x = 0; x < width; ++x) rows.here[x] += T(0.75) * padded[x];
        for (int64_t x = 0; x < width; ++x) far[x] += T(0.25) * padded[x];
    }
}

// Reads the quad of row y of a map [2 h, 2 w], times `unit`.
template <typename T, typename Cell>
SP_FAST_INLINE void read_quad(const Cell* map, int64_t y, int64_t width, T unit, T* __restrict quad) {
    for (int64_t i = 0; i < 2; ++i) {
        const Cell* row = map + (2 * y + i) * 2 * width;
        T* even = quad + 2 * i * width;
        T* odd = even + width;
        for (int64_t x = 0; x < width; ++x) {
            even[x] = static_cast<T>(row[2 * x]) * unit;
            odd[x] = static_cast<T>(row[2 * x + 1]) * unit;
        }
    }
}

// exp(x) for x <= 0, within 2 units in the last place (below exp(-87), exp(-87)); NaN is kept. Without a
// branch or a call, so that loops over it are vectorised.
SP_FAST_INLINE float exp_of_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // the nearest integer, in the last bits
    const float whole = shifted - 12582912.0f;
    const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits << 23) + 0x3f800000u;
    float power;
    std::memcpy(&power, &bits, sizeof(power));
    return y * power;
}
SP_FAST_INLINE double exp_of_negative(double x) { return std::exp(x); }

// log(1 + e) for e in [0, 1], as 2 artanh(e / (2 + e)).
SP_FAST_INLINE float log_of_one_plus(float e) {
    const float s = e / (2.0f + e), square = s * s;
    float y = 1.0f / 13.0f;
    y = y * square + 1.0f / 11.0f;
    y = y * square + 1.0f / 9.0f;
    y = y * square + 1.0f / 7.0f;
    y = y * square + 1.0f / 5.0f;
    y = y * square + 1.0f / 3.0f;
    return 2.0f * (s + s * (square * y));
}
SP_FAST_INLINE double log_of_one_plus(double e) { return std::log1p(e); }

template <typename T>
SP_FAST_INLINE T sigmoid(T x) {
    const T e = exp_of_negative(-std::abs(x));
    return (x >= 0 ? T(1) : e) / (1 + e);
}

template <typename T>
SP_FAST_INLINE T sum(const T* a, int64_t n) {
    constexpr int64_t kLanes = Lanes<T>::kSize;
    typename Lanes<T>::Vector sums[2] = {}, x;
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        for (int64_t k = 0; k < 2; ++k) {
            load(x, a + i + k * kLanes);
            sums[k] += x;
        }
    }
    T rest = 0;
    for (; i < n; ++i) rest += a[i];
    sums[0] += sums[1];
    return sum_lanes<T>(sums[0]) + rest;
}

}  // namespace sp_fast
