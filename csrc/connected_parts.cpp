#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "mask_parts.h"
#include "ops.h"

namespace sp_fast {
namespace {

// Minimum number of masks per thread.
constexpr int64_t kGrain = 16;

// The first cell in [from, end) that is inside (flip 0) or outside (flip ~0) the mask; `end` if there is
// none.
int32_t next_cell(const uint32_t* words, int32_t from, int32_t end, uint32_t flip) {
    while (from < end) {
        const uint32_t bits = (words[from / 32] ^ flip) >> from % 32;
        if (bits != 0) return std::min(from + __builtin_ctz(bits), end);
        from += 32 - from % 32;
    }
    return end;
}

void set_cells(uint32_t* words, int32_t begin, int32_t end) {
    while (begin < end) {
        const int32_t bit = begin % 32, number = std::min(32 - bit, end - begin);
        words[begin / 32] |= ~uint32_t{0} >> (32 - number) << bit;
        begin += number;
    }
}

// Cells [begin, end) of one row. The parent is an earlier run of the same part, or the run itself.
struct Run {
    int32_t begin, end, parent;
};

// Finds the parts of one mask after another.
class PartFinder {
  public:
    PartFinder(int64_t height, int64_t width, int64_t min_area, int64_t connectivity)
        : height_(static_cast<int32_t>(height)),
          width_(static_cast<int32_t>(width)),
          reach_(connectivity == 8),
          min_area_(min_area) {}

    // Writes the largest parts to `out` [max_parts, size], and returns their number.
    int64_t find(const uint32_t* words, int64_t size, int64_t max_parts, uint32_t* out) {
        label(words);
        const int64_t number = rank(max_parts);
        std::fill_n(out, max_parts * size, 0);
        for (const Run& run : runs_) {
            if (ranks_[run.parent] >= 0) set_cells(out + ranks_[run.parent] * size, run.begin, run.end);
        }
        return number;
    }

  private:
    // Lists the runs, the parent of each being the first run of its part.
    void label(const uint32_t* words) {
        runs_.clear();
        int32_t above = 0;
        for (int32_t y = 0; y < height_; ++y) {
            const auto first = static_cast<int32_t>(runs_.size());
            const int32_t end = (y + 1) * width_;
            for (int32_t from = y * width_; (from = next_cell(words, from, end, 0)) < end;) {
                const int32_t to = next_cell(words, from, end, ~uint32_t{0});
                runs_.push_back({from, to, static_cast<int32_t>(runs_.size())});
                from = to;
            }
            join_rows(above, first);
            above = first;
        }
        for (Run& run : runs_) run.parent = runs_[run.parent].parent;
    }

    // Joins the runs from `first` on with those in the row above, which begin at `above`.
    void join_rows(int32_t above, int32_t first) {
        const auto last = static_cast<int32_t>(runs_.size());
        for (int32_t upper = above, lower = first; upper < first && lower < last;) {
            const int32_t begin = runs_[upper].begin + width_, end = runs_[upper].end + width_;
            if (begin < runs_[lower].end + reach_ && runs_[lower].begin < end + reach_) join(upper, lower);
            (end < runs_[lower].end ? upper : lower)++;
        }
    }

    void join(int32_t a, int32_t b) {
        a = root(a);
        b = root(b);
        runs_[std::max(a, b)].parent = std::min(a, b);
    }

    int32_t root(int32_t run) {
        while (runs_[run].parent != run) {
            runs_[run].parent = runs_[runs_[run].parent].parent;
            run = runs_[run].parent;
        }
        return run;
    }

    // Gives the parts their ranks, stored at their first runs; -1 elsewhere.
    int64_t rank(int64_t max_parts) {
        areas_.assign(runs_.size(), 0);
        for (const Run& run : runs_) areas_[run.parent] += run.end - run.begin;
        parts_.clear();
        for (int32_t run = 0; run < static_cast<int32_t>(runs_.size()); ++run) {
            if (areas_[run] > 0 && areas_[run] >= min_area_) parts_.push_back(run);
        }
        const int64_t number = std::min(max_parts, static_cast<int64_t>(parts_.size()));
        std::partial_sort(
            parts_.begin(), parts_.begin() + number, parts_.end(),
            [this](int32_t a, int32_t b) { return areas_[a] != areas_[b] ? areas_[a] > areas_[b] : a < b; });
        ranks_.assign(runs_.size(), -1);
        for (int64_t k = 0; k < number; ++k) ranks_[parts_[k]] = k;
        return number;
    }

    const int32_t height_, width_, reach_;
    const int64_t min_area_;
    std::vector<Run> runs_;
    std::vector<int32_t> areas_, parts_;
    std::vector<int64_t> ranks_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> connected_parts(const at::Tensor& words, int64_t height, int64_t width,
                                                   int64_t max_parts, int64_t min_area,
                                                   int64_t connectivity) {
    check_cpu("words", words);
    MaskParts parts = empty_parts(words, height, width, max_parts, min_area, connectivity);
    const at::Tensor bits = words.contiguous();
    const int64_t size = parts.shape.words();
    const auto* from = reinterpret_cast<const uint32_t*>(bits.const_data_ptr<int32_t>());
    auto* to = reinterpret_cast<uint32_t*>(parts.words.mutable_data_ptr<int32_t>());
    int64_t* count = parts.count.mutable_data_ptr<int64_t>();
    at::parallel_for(0, parts.shape.number, kGrain, [&](int64_t begin, int64_t end) {
        PartFinder finder(height, width, min_area, connectivity);
        for (int64_t m = begin; m < end; ++m) {
            count[m] = finder.find(from + m * size, size, max_parts, to + m * max_parts * size);
        }
    });
    return {parts.words, parts.count};
}

}  // namespace sp_fast
