#include <ATen/Parallel.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <limits>

#include "ops.h"
#include "packed_masks.h"
#include "valid_size.h"
#include "vectors.h"

namespace sp_fast {
namespace {

// Norms max(|x|, eps) of the cells [begin, end) of x [channels, cells].
SP_FAST_CLONES void cell_norms(const float* x, int64_t channels, int64_t cells, int64_t begin, int64_t end,
                               float* norms) {
    for (int64_t i = begin; i < end; ++i) norms[i] = 0;
    for (int64_t d = 0; d < channels; ++d) {
        const float* row = x + d * cells;
        for (int64_t i = begin; i < end; ++i) norms[i] += row[i] * row[i];
    }
    for (int64_t i = begin; i < end; ++i) {
        const float length = std::sqrt(norms[i]);
        norms[i] = length < float(kCosineEps) ? float(kCosineEps) : length;
    }
}

SP_FAST_CLONES void normalize_row(const float* x, int64_t n, float* out) { normalize(x, n, out); }

SP_FAST_CLONES void divide(float* y, const float* by, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] /= by[i];
}

// Normalises y to [0, 1], marks the cells at or above the threshold, and computes the mean of y over them.
// Returns false if all values are equal or any is not finite.
SP_FAST_CLONES bool threshold_row(float* y, int64_t n, float threshold, uint8_t* inside, float* score) {
    constexpr int64_t kLanes = Lanes<float>::kSize;
    float lows[kLanes], highs[kLanes], strange[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) {
        lows[k] = std::numeric_limits<float>::infinity();
        highs[k] = -lows[k];
        strange[k] = 0;
    }
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int64_t k = 0; k < kLanes; ++k) {
            lows[k] = y[i + k] < lows[k] ? y[i + k] : lows[k];
            highs[k] = y[i + k] > highs[k] ? y[i + k] : highs[k];
            strange[k] += y[i + k] - y[i + k];  // 0, or NaN for NaN and inf
        }
    }
    for (int64_t k = 0; i + k < n; ++k) {
        lows[k] = y[i + k] < lows[k] ? y[i + k] : lows[k];
        highs[k] = y[i + k] > highs[k] ? y[i + k] : highs[k];
        strange[k] += y[i + k] - y[i + k];
    }
    float low = lows[0], high = highs[0], odd = strange[0];
    for (int64_t k = 1; k < kLanes; ++k) {
        low = lows[k] < low ? lows[k] : low;
        high = highs[k] > high ? highs[k] : high;
        odd += strange[k];
    }
    const float span = high - low;
    if (odd != 0 || !(span > 0) || !std::isfinite(span)) return false;

    float sums[kLanes] = {};
    int32_t counts[kLanes] = {};
    const auto cell = [&](int64_t at, int64_t k) __attribute__((always_inline)) {
        const float value = (y[at] - low) / span;
        const bool is_inside = value >= threshold;
        y[at] = value;
        inside[at] = is_inside;
        sums[k] += is_inside ? value : 0;
        counts[k] += is_inside;
    };
    i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int64_t k = 0; k < kLanes; ++k) cell(i + k, k);
    }
    for (int64_t k = 0; i + k < n; ++k) cell(i + k, k);
    float total = 0;
    int32_t count = 0;
    for (int64_t k = 0; k < kLanes; ++k) {
        total += sums[k];
        count += counts[k];
    }
    *score = total / static_cast<float>(count > 0 ? count : 1);
    return true;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> seed_saliency(const at::Tensor& features, const at::Tensor& seeds,
                                                 const std::optional<at::Tensor>& valid, bool cosine,
                                                 double threshold) {
    check_features(features);
    const auto sizes = valid_sizes(features, valid);
    const int64_t batch = features.size(0), channels = features.size(1);
    const int64_t height = features.size(2), width = features.size(3);
    check_cpu("seeds", seeds);
    check_shape("seeds", seeds, {batch, -1, channels});
    check_same_dtype("seeds", seeds, features);
    const int64_t number = seeds.size(1), words = (height * width + 31) / 32;
    at::Tensor packed = at::empty({batch, number, words}, features.options().dtype(at::kInt));
    at::Tensor score = at::empty({batch, number}, features.options().dtype(at::kFloat));
    if (number == 0 || batch == 0) return {packed, score};

    // Autocast must not turn the products below into 16-bit ones.
    c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
    at::Tensor vectors = seeds.to(at::kFloat);
    if (cosine) {
        vectors = vectors.contiguous();
        at::Tensor unit = at::empty(vectors.sizes(), vectors.options());
        const float* from = vectors.const_data_ptr<float>();
        float* to = unit.mutable_data_ptr<float>();
        at::parallel_for(0, batch * number, 16, [&](int64_t begin, int64_t end) {
            for (int64_t m = begin; m < end; ++m)
                normalize_row(from + m * channels, channels, to + m * channels);
        });
        vectors = unit;
    }
    const at::Tensor maps = features.to(at::kFloat).contiguous();
    // One product for all images; with padding, one per image, so that an image gives the same as alone.
    at::Tensor together;
    if (!valid.has_value()) together = at::bmm(vectors, maps.flatten(2));
    int32_t* packed_data = packed.mutable_data_ptr<int32_t>();
    float* score_data = score.mutable_data_ptr<float>();
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t rows = sizes[b].height, columns = sizes[b].width, cells = rows * columns;
        const at::Tensor x =
            maps[b].narrow(1, 0, rows).narrow(2, 0, columns).reshape({channels, cells}).contiguous();
        at::Tensor similarity = together.defined() ? together[b] : at::mm(vectors[b], x);  // [M, cells]
        float* y = similarity.mutable_data_ptr<float>();
        std::vector<float> norms(cosine ? cells : 0);
        if (cosine) {
            at::parallel_for(0, cells, 128, [&](int64_t begin, int64_t end) {
                cell_norms(x.const_data_ptr<float>(), channels, cells, begin, end, norms.data());
            });
        }
        at::parallel_for(0, number, 8, [&](int64_t begin, int64_t end) {
            std::vector<uint8_t> inside(cells), full(32 * words, 0);
            for (int64_t m = begin; m < end; ++m) {
                float* row = y + m * cells;
                int32_t* out = packed_data + (b * number + m) * words;
                float& row_score = score_data[b * number + m];
                if (cosine) divide(row, norms.data(), cells);
                if (!threshold_row(row, cells, static_cast<float>(threshold), inside.data(), &row_score)) {
                    std::fill_n(out, words, 0);
                    row_score = 0;
                    continue;
                }
                for (int64_t r = 0; r < rows; ++r) {
                    std::copy_n(inside.data() + r * columns, columns, full.data() + r * width);
                }
                pack_words(full.data(), words, out);
            }
        });
    }
    return {packed, score};
}

}  // namespace sp_fast
