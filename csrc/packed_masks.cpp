#include "packed_masks.h"

#include "vectors.h"

namespace sp_fast {
namespace {

SP_FAST_CLONES int64_t count_common(const uint64_t* a, const uint64_t* b, int64_t n) {
    int64_t common = 0;
    for (int64_t i = 0; i < n; ++i) common += __builtin_popcountll(a[i] & b[i]);
    return common;
}

}  // namespace

int64_t ImageMasks::intersection(int64_t a, int64_t b) const {
    return count_common(cells_.data() + a * size_, cells_.data() + b * size_, size_);
}

}  // namespace sp_fast
