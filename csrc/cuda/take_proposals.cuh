#pragma once

#include "device.h"

namespace sp_fast::cuda {

// Tables from which the rows of the proposals are taken.
struct ProposalTables {
    const int32_t* words;  // [batch, seeds, words_per_mask]
    const float* score;    // [batch, seeds]
    const void* vectors;   // [batch, seeds, bytes_per_vector]
    int64_t batch, seeds, words_per_mask, bytes_per_vector;
};

// chosen int64 [batch, most] -> taken rows, zeros where chosen is out of range; count int64 [batch]
void launch_take_proposals(const ProposalTables& from, const int64_t* chosen, int64_t most, int32_t* words,
                           float* score, void* vectors, int64_t* count, cudaStream_t stream);

}  // namespace sp_fast::cuda
