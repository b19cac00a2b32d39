#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "mask_shapes.h"
#include "ops.h"

namespace sp_fast {
namespace {

// Minimum number of masks per thread.
constexpr int64_t kGrain = 4;

// Decodes COCO's compressed run lengths to the first pixel of each run; false if the string is damaged.
// A number is made of 5-bit groups, lowest first, each a character from 48 up; bit 5 means that another group
// follows, bit 4 of the last one is the sign. From the fourth number on, it is the difference to the number
// two places before.
bool decode(const uint8_t* text, const uint8_t* end, int64_t pixels, std::vector<int64_t>& starts) {
    starts.assign(1, 0);
    int64_t before[2] = {0, 0}, number = 0;
    while (text < end) {
        int64_t value = 0;
        for (int shift = 0;; shift += 5) {
            if (text == end || shift > 55 || *text < 48 || *text > 111) return false;
            const int64_t group = *text++ - 48;
            value |= (group & 0x1f) << shift;
            if (group & 0x20) continue;
            if (group & 0x10) value -= int64_t{1} << (shift + 5);
            break;
        }
        if (number > 2) value += before[number % 2];
        if (value < 0 || value > pixels - starts.back()) return false;
        before[number++ % 2] = value;
        starts.push_back(starts.back() + value);
    }
    return starts.back() == pixels;
}

// Cells [begin, end) of a column of the result.
struct Cells {
    int64_t begin, end;
};

// Finds which cells of a column of the result are inside a mask.
class ColumnSampler {
  public:
    ColumnSampler(int64_t height, const int64_t* rows, int64_t number)
        : height_(height), number_(number), rows_(rows), before_(height + 1, 0) {
        int64_t first = 0, end = number;
        while (first < number && rows[first] < 0) ++first;
        while (end > first && rows[end - 1] < 0) --end;
        descending_ = end > first && rows[first] > rows[end - 1];
        ordered_ = true;
        for (int64_t i = first; i < end; ++i) {
            const bool follows =
                i == first || (descending_ ? rows[i] <= rows[i - 1] : rows[i] >= rows[i - 1]);
            ordered_ = ordered_ && rows[i] >= 0 && follows;
            if (rows[i] >= 0) ++before_[rows[i] + 1];
        }
        for (int64_t y = 0; y < height; ++y) before_[y + 1] += before_[y];
        first_ = descending_ ? end : first;
    }

    // The cells that are inside in column x of the mask. `starts`: first pixel of each run.
    const std::vector<Cells>& sample(const std::vector<int64_t>& starts, int64_t x) {
        const int64_t top = x * height_, bottom = top + height_;
        cells_.clear();
        int64_t run = std::upper_bound(starts.begin(), starts.end(), top) - starts.begin() - 1;
        const auto last = static_cast<int64_t>(starts.size()) - 1;
        for (; run < last && starts[run] < bottom; ++run) {
            // Runs of odd number are inside.
            if (run % 2 == 1) {
                add(std::max(starts[run], top) - top, std::min(starts[run + 1], bottom) - top);
            }
        }
        return cells_;
    }

  private:
    // Rows [from, to) of the mask are inside.
    void add(int64_t from, int64_t to) {
        if (!ordered_) {
            for (int64_t i = 0; i < number_; ++i) {
                if (rows_[i] >= from && rows_[i] < to) cells_.push_back({i, i + 1});
            }
        } else if (descending_) {
            cells_.push_back({first_ - before_[to], first_ - before_[from]});
        } else {
            cells_.push_back({first_ + before_[from], first_ + before_[to]});
        }
    }

    int64_t height_, number_, first_;
    bool ordered_, descending_;
    const int64_t* rows_;
    // Number of cells whose row lies before y.
    std::vector<int64_t> before_;
    std::vector<Cells> cells_;
};

void set_bits(int32_t* words, int64_t begin, int64_t end) {
    while (begin < end) {
        const int64_t bit = begin % 32, number = std::min(32 - bit, end - begin);
        const uint32_t ones = ~uint32_t{0} >> (32 - number) << bit;
        words[begin / 32] = static_cast<int32_t>(static_cast<uint32_t>(words[begin / 32]) | ones);
        begin += number;
    }
}

void check_lines(const char* name, const at::Tensor& lines, int64_t limit) {
    check_cpu(name, lines);
    TORCH_CHECK_TYPE(lines.scalar_type() == at::kLong, name, ": expected dtype int64, got ",
                     lines.scalar_type());
    check_shape(name, lines, {-1});
    check_values(name, lines.contiguous(), -1, limit - 1);
}

}  // namespace

at::Tensor sample_runs(const at::Tensor& text, const at::Tensor& ends, int64_t height, int64_t width,
                       const at::Tensor& rows, const at::Tensor& columns) {
    check_cpu("text", text);
    TORCH_CHECK_TYPE(text.scalar_type() == at::kByte, "text: expected dtype uint8, got ", text.scalar_type());
    check_shape("text", text, {-1});
    TORCH_CHECK_VALUE(height >= 0 && width >= 0 && (height == 0 || width <= (int64_t{1} << 40) / height),
                      "height, width: expected 0 to 2^40 pixels, got ", height, " x ", width);
    check_lines("ends", ends, text.numel() + 1);
    check_lines("rows", rows, height);
    check_lines("columns", columns, width);
    const at::Tensor string = text.contiguous(), stops = ends.contiguous(), y = rows.contiguous(),
                     x = columns.contiguous();
    const MaskShape shape = mask_shape(ends.sizes(), x.numel(), y.numel());
    at::Tensor sampled = at::empty(shape.with(shape.words()), ends.options().dtype(at::kInt));
    const uint8_t* characters = string.const_data_ptr<uint8_t>();
    const int64_t *stop = stops.const_data_ptr<int64_t>(), *column = x.const_data_ptr<int64_t>();
    int32_t* out = sampled.mutable_data_ptr<int32_t>();
    at::parallel_for(0, shape.number, kGrain, [&](int64_t begin, int64_t end) {
        ColumnSampler sampler(height, y.const_data_ptr<int64_t>(), shape.width);
        std::vector<int64_t> starts;
        const std::vector<Cells>* cells = nullptr;
        for (int64_t m = begin; m < end; ++m) {
            const int64_t first = m == 0 ? 0 : stop[m - 1];
            const bool whole = first >= 0 && first <= stop[m] &&
                               decode(characters + first, characters + stop[m], height * width, starts);
            TORCH_CHECK_VALUE(whole, "text: mask ", m, " is damaged: expected compressed run lengths of ",
                              height, " x ", width, " pixels");
            int32_t* mask = out + m * shape.words();
            std::fill_n(mask, shape.words(), 0);
            for (int64_t i = 0; i < shape.height; ++i) {
                if (column[i] < 0) continue;
                // Enlarged masks repeat their columns.
                if (i == 0 || column[i] != column[i - 1]) cells = &sampler.sample(starts, column[i]);
                for (const Cells& one : *cells) {
                    set_bits(mask, i * shape.width + one.begin, i * shape.width + one.end);
                }
            }
        }
    });
    return sampled;
}

}  // namespace sp_fast
