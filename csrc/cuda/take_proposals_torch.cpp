#include "host.h"
#include "proposal_tables.h"
#include "take_proposals.cuh"

namespace sp_fast::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> take_proposals(const at::Tensor& words,
                                                                          const at::Tensor& score,
                                                                          const at::Tensor& seeds,
                                                                          const at::Tensor& chosen) {
    check_device("score", score, words);
    check_device("seeds", seeds, words);
    check_device("chosen", chosen, words);
    const OnDevice on(words);
    TakenProposals taken = empty_proposals(words, score, seeds, chosen);
    if (chosen.size(1) == 0) taken.count.zero_();
    const at::Tensor masks = words.contiguous(), scores = score.contiguous();
    const at::Tensor vectors = seeds.contiguous(), rows = chosen.contiguous();
    const ProposalTables from{masks.const_data_ptr<int32_t>(),
                              scores.const_data_ptr<float>(),
                              vectors.const_data_ptr(),
                              words.size(0),
                              words.size(1),
                              words.size(2),
                              seeds.size(2) * static_cast<int64_t>(seeds.element_size())};
    launch_take_proposals(from, rows.const_data_ptr<int64_t>(), chosen.size(1),
                          taken.words.mutable_data_ptr<int32_t>(), taken.score.mutable_data_ptr<float>(),
                          taken.seeds.mutable_data_ptr(), taken.count.mutable_data_ptr<int64_t>(), on.stream);
    return {taken.words, taken.score, taken.seeds, taken.count};
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("take_proposals", take_proposals); }

}  // namespace sp_fast::cuda
