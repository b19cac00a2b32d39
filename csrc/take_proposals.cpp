#include <cstring>

#include "ops.h"
#include "proposal_tables.h"

namespace sp_fast {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> take_proposals(const at::Tensor& words,
                                                                          const at::Tensor& score,
                                                                          const at::Tensor& seeds,
                                                                          const at::Tensor& chosen) {
    check_cpu("words", words);
    check_cpu("score", score);
    check_cpu("seeds", seeds);
    check_cpu("chosen", chosen);
    TakenProposals taken = empty_proposals(words, score, seeds, chosen);
    const at::Tensor rows = chosen.contiguous();
    const int64_t batch = words.size(0), number = words.size(1), most = chosen.size(1);
    // Source, destination and bytes per row of each table.
    struct Table {
        at::Tensor from;
        at::Tensor& to;
        int64_t bytes;
    };
    const Table tables[] = {
        {words.contiguous(), taken.words, words.size(2) * 4},
        {score.contiguous(), taken.score, 4},
        {seeds.contiguous(), taken.seeds, seeds.size(2) * static_cast<int64_t>(seeds.element_size())},
    };
    const int64_t* index = rows.const_data_ptr<int64_t>();
    int64_t* count = taken.count.mutable_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b) {
        count[b] = 0;
        for (int64_t row = b * most; row < (b + 1) * most; ++row) {
            const bool real = index[row] >= 0 && index[row] < number;
            count[b] += real;
            for (const Table& table : tables) {
                if (table.bytes == 0) continue;
                char* to = static_cast<char*>(table.to.mutable_data_ptr()) + row * table.bytes;
                const char* from = static_cast<const char*>(table.from.const_data_ptr());
                if (real) {
                    std::memcpy(to, from + (b * number + index[row]) * table.bytes, table.bytes);
                } else {
                    std::memset(to, 0, table.bytes);
                }
            }
        }
    }
    return {taken.words, taken.score, taken.seeds, taken.count};
}

}  // namespace sp_fast
