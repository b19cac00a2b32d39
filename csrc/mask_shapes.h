// Shapes of packed masks: any number of leading dimensions, then words.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "checks.h"

namespace sp_fast {

struct MaskShape {
    std::vector<int64_t> leading;
    int64_t number, height, width;

    int64_t cells() const { return height * width; }
    int64_t words() const { return (cells() + 31) / 32; }

    // The leading dimensions, followed by the given sizes.
    template <typename... Sizes>
    std::vector<int64_t> with(Sizes... sizes) const {
        std::vector<int64_t> all = leading;
        (all.push_back(sizes), ...);
        return all;
    }
};

inline MaskShape mask_shape(at::IntArrayRef leading, int64_t height, int64_t width) {
    return {leading.vec(), c10::multiply_integers(leading), height, width};
}

inline void check_words(const at::Tensor& words) {
    TORCH_CHECK_TYPE(words.scalar_type() == at::kInt, "words: expected dtype int32, got ",
                     words.scalar_type());
    TORCH_CHECK_VALUE(words.dim() >= 1, "words: expected at least one dimension, got none");
}

// Checks words [B, M, W32] and score [B, M], on any device.
inline void check_scored_masks(const at::Tensor& words, const at::Tensor& score) {
    TORCH_CHECK_TYPE(words.scalar_type() == at::kInt, "words: expected dtype int32, got ",
                     words.scalar_type());
    check_real("score", score);
    check_shape("words", words, {-1, -1, -1});
    check_shape("score", score, {words.size(0), words.size(1)});
}

inline MaskShape shape_of_masks(const at::Tensor& masks) {
    TORCH_CHECK_TYPE(masks.scalar_type() == at::kBool, "masks: expected dtype bool, got ",
                     masks.scalar_type());
    TORCH_CHECK_VALUE(masks.dim() >= 2, "masks: expected shape [..., H, W], got ", masks.sizes());
    return mask_shape(masks.sizes().slice(0, masks.dim() - 2), masks.size(-2), masks.size(-1));
}

inline MaskShape shape_of_words(const at::Tensor& words, int64_t height, int64_t width) {
    check_words(words);
    TORCH_CHECK_VALUE(height >= 0 && width >= 0, "height, width: expected at least 0, got ", height, ", ",
                      width);
    const MaskShape shape = mask_shape(words.sizes().slice(0, words.dim() - 1), height, width);
    TORCH_CHECK_VALUE(words.size(-1) == shape.words(), "words: expected ", shape.words(),
                      " words for masks of ", height, " x ", width, ", got ", words.size(-1));
    return shape;
}

}  // namespace sp_fast
