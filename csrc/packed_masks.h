// Masks packed 32 cells per int32 word, read 64 cells at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "mask_shapes.h"

namespace sp_fast {

inline void check_masks(const at::Tensor& words, const at::Tensor& score) {
    check_cpu("words", words);
    check_cpu("score", score);
    check_scored_masks(words, score);
}

// Packs bytes of 0 or 1 to bits; `inside` has 32 bytes for every word.
void pack_words(const uint8_t* inside, int64_t words, int32_t* out);

// The masks of one image, each padded to whole 64-bit words.
class ImageMasks {
  public:
    ImageMasks(const int32_t* words, int64_t masks, int64_t words_per_mask)
        : size_((words_per_mask + 1) / 2), cells_(masks * size_, 0), area_(masks) {
        for (int64_t m = 0; m < masks; ++m) {
            if (words_per_mask > 0) {
                std::memcpy(&cells_[m * size_], words + m * words_per_mask, words_per_mask * sizeof(int32_t));
            }
            area_[m] = intersection(m, m);
        }
    }

    int64_t area(int64_t m) const { return area_[m]; }

    int64_t intersection(int64_t a, int64_t b) const;

    // In fp64, 0 for two empty masks.
    double iou(int64_t a, int64_t b) const {
        const int64_t common = intersection(a, b);
        const int64_t all = area_[a] + area_[b] - common;
        return static_cast<double>(common) / static_cast<double>(std::max<int64_t>(all, 1));
    }

  private:
    int64_t size_;
    std::vector<uint64_t> cells_;
    std::vector<int64_t> area_;
};

// Order by descending score, equal scores by ascending index, NaN last.
inline std::vector<int64_t> best_first(const float* score, int64_t masks) {
    std::vector<int64_t> order(masks);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [score](int64_t a, int64_t b) {
        if (std::isnan(score[a]) || std::isnan(score[b]))
            return !std::isnan(score[a]) && std::isnan(score[b]);
        return score[a] > score[b];
    });
    return order;
}

}  // namespace sp_fast
