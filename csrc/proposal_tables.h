// Checks of the tables that proposals are taken from, and allocation of the results.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "checks.h"

namespace sp_fast {

struct TakenProposals {
    at::Tensor words, score, seeds, count;
};

inline TakenProposals empty_proposals(const at::Tensor& words, const at::Tensor& score,
                                      const at::Tensor& seeds, const at::Tensor& chosen) {
    TORCH_CHECK_TYPE(words.scalar_type() == at::kInt, "words: expected dtype int32, got ",
                     words.scalar_type());
    TORCH_CHECK_TYPE(score.scalar_type() == at::kFloat, "score: expected dtype float32, got ",
                     score.scalar_type());
    TORCH_CHECK_TYPE(chosen.scalar_type() == at::kLong, "chosen: expected dtype int64, got ",
                     chosen.scalar_type());
    check_real("seeds", seeds);
    check_shape("words", words, {-1, -1, -1});
    const int64_t batch = words.size(0), number = words.size(1);
    check_shape("score", score, {batch, number});
    check_shape("seeds", seeds, {batch, number, -1});
    check_shape("chosen", chosen, {batch, -1});
    const int64_t most = chosen.size(1);
    return {at::empty({batch, most, words.size(2)}, words.options()),
            at::empty({batch, most}, score.options()),
            at::empty({batch, most, seeds.size(2)}, seeds.options()), at::empty({batch}, chosen.options())};
}

}  // namespace sp_fast
