#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "mask_shapes.h"
#include "ops.h"
#include "packed_masks.h"

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

// Samples the columns of one mask after another.
class ColumnSampler {
  public:
    ColumnSampler(int64_t height, const int64_t* rows, int64_t number)
        : height_(height), number_(number), inside_(height + 1, 0), cells_((number + 31) / 32 * 32, 0) {
        // An additional pixel, which is never inside, stands for all that lies outside the image.
        rows_.assign(rows, rows + number);
        for (int64_t& row : rows_) row = row < 0 ? height : row;
    }

    // Whether the mask has pixels in column x; if so, its sampled cells are in `words`.
    bool sample(const std::vector<int64_t>& starts, int64_t x, int32_t* words) {
        const int64_t first = x * height_, end = first + height_;
        // Runs of odd number are inside.
        int64_t run = std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1;
        const auto last = static_cast<int64_t>(starts.size()) - 1;
        bool any = false;
        std::fill(inside_.begin(), inside_.end(), 0);
        for (; run < last && starts[run] < end; ++run) {
            if (run % 2 == 0) continue;
            const int64_t from = std::max(starts[run], first), to = std::min(starts[run + 1], end);
            if (from < to) std::memset(inside_.data() + (from - first), 1, to - from);
            any = any || from < to;
        }
        if (!any) return false;
        for (int64_t i = 0; i < number_; ++i) cells_[i] = inside_[rows_[i]];
        pack_words(cells_.data(), static_cast<int64_t>(cells_.size()) / 32, words);
        return true;
    }

  private:
    int64_t height_, number_;
    std::vector<uint8_t> inside_, cells_;
    std::vector<int64_t> rows_;
};

// Sets the bits of `words` in `out`, from bit `place` on; `out` has bits for all that are set.
void place_bits(const int32_t* words, int64_t number, int64_t place, int32_t* out) {
    const int64_t shift = place % 32;
    out += place / 32;
    for (int64_t k = 0; k < number; ++k) {
        const auto bits = static_cast<uint64_t>(static_cast<uint32_t>(words[k])) << shift;
        if (static_cast<uint32_t>(bits) != 0) out[k] |= static_cast<int32_t>(bits);
        if (bits >> 32 != 0) out[k + 1] |= static_cast<int32_t>(bits >> 32);
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
        std::vector<int32_t> words((shape.width + 31) / 32);
        std::vector<int64_t> starts;
        for (int64_t m = begin; m < end; ++m) {
            const int64_t first = m == 0 ? 0 : stop[m - 1];
            const bool whole = first >= 0 && first <= stop[m] &&
                               decode(characters + first, characters + stop[m], height * width, starts);
            TORCH_CHECK_VALUE(whole, "text: mask ", m, " is damaged: expected compressed run lengths of ",
                              height, " x ", width, " pixels");
            int32_t* mask = out + m * shape.words();
            std::fill_n(mask, shape.words(), 0);
            bool any = false;
            for (int64_t i = 0; i < shape.height; ++i) {
                if (column[i] < 0) continue;
                if (i == 0 || column[i] != column[i - 1]) any = sampler.sample(starts, column[i], words.data());
                if (any) place_bits(words.data(), static_cast<int64_t>(words.size()), i * shape.width, mask);
            }
        }
    });
    return sampled;
}

}  // namespace sp_fast
