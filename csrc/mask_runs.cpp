#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace sp_fast {
namespace {

// Where the centres of `pixels` pixels fall among `cells` cells, as bilinear resizing without aligned corners
// counts: between the cells `first` and `second`, at the share `part` of the way.
struct Axis {
    Axis(int64_t pixels, int64_t cells) : first(pixels), second(pixels), part(pixels), begin(cells + 1, 0) {
        const float scale = static_cast<float>(cells) / static_cast<float>(pixels);
        for (int64_t i = 0; i < pixels; ++i) {
            const float at = std::max(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
            first[i] = std::min(static_cast<int64_t>(at), cells - 1);
            second[i] = std::min(first[i] + 1, cells - 1);
            part[i] = std::min(at - static_cast<float>(first[i]), 1.0f);
            ++begin[first[i] + 1];
        }
        for (int64_t c = 0; c < cells; ++c) begin[c + 1] += begin[c];
    }

    std::vector<int64_t> first, second;
    std::vector<float> part;
    std::vector<int64_t> begin;  // pixels [begin[c], begin[c + 1]) lie behind the centre of cell c
};

// Lengths of the runs outside and inside the mask in turn, the first outside.
class Runs {
  public:
    explicit Runs(std::vector<int32_t>* lengths) : lengths_(lengths) {}

    // The pixels from `at` on are inside, or outside, the mask.
    void set(int64_t at, bool inside) {
        if (inside == inside_) return;
        lengths_->push_back(static_cast<int32_t>(at - last_));
        last_ = at;
        inside_ = inside;
    }

    void finish(int64_t end) { lengths_->push_back(static_cast<int32_t>(end - last_)); }

  private:
    std::vector<int32_t>* lengths_;
    int64_t last_ = 0;
    bool inside_ = false;
};

// Within a column the resized map is linear between the centres of two cells: where these are on different
// sides of the threshold there is one crossing, found by bisection, and elsewhere none.
void add_column(const float* column, const Axis& rows, int64_t cells, float threshold, int64_t offset,
                Runs* runs) {
    for (int64_t c = 0; c < cells; ++c) {
        int64_t low = rows.begin[c], high = rows.begin[c + 1];
        if (low == high) continue;
        const float from = column[c], to = column[std::min(c + 1, cells - 1)];
        const bool inside = from >= threshold;
        if (inside == (to >= threshold)) {
            runs->set(offset + low, inside);
            continue;
        }
        const int64_t start = low;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            const float value = (1 - rows.part[middle]) * from + rows.part[middle] * to;
            (value >= threshold) == inside ? low = middle + 1 : high = middle;
        }
        if (low > start) runs->set(offset + start, inside);
        if (low < rows.begin[c + 1]) runs->set(offset + low, !inside);
    }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> mask_runs(const at::Tensor& saliency, const at::Tensor& threshold,
                                             int64_t height, int64_t width) {
    check_cpu("saliency", saliency);
    check_real("saliency", saliency);
    check_shape("saliency", saliency, {-1, -1, -1});
    check_cpu("threshold", threshold);
    const int64_t masks = saliency.size(0), rows = saliency.size(1), columns = saliency.size(2);
    check_shape("threshold", threshold, {masks});
    TORCH_CHECK_VALUE(rows > 0 && columns > 0, "saliency: expected at least one cell, got ",
                      saliency.sizes());
    TORCH_CHECK_VALUE(height > 0 && width > 0 && height <= std::numeric_limits<int32_t>::max() / width,
                      "height, width: expected from 1 to 2^31 pixels, got ", height, " x ", width);
    const at::Tensor maps = saliency.to(at::kFloat).transpose(1, 2).contiguous();  // [K, w, h]
    const at::Tensor limits = threshold.to(at::kFloat).contiguous();
    const float* data = maps.const_data_ptr<float>();
    const float* limit = limits.const_data_ptr<float>();
    const Axis down(height, rows), across(width, columns);
    std::vector<std::vector<int32_t>> found(masks);
    at::parallel_for(0, masks, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> column(rows);
        for (int64_t k = begin; k < end; ++k) {
            Runs runs(&found[k]);
            for (int64_t x = 0; x < width; ++x) {
                const float* left = data + (k * columns + across.first[x]) * rows;
                const float* right = data + (k * columns + across.second[x]) * rows;
                const float part = across.part[x];
                for (int64_t r = 0; r < rows; ++r) column[r] = (1 - part) * left[r] + part * right[r];
                add_column(column.data(), down, rows, limit[k], x * height, &runs);
            }
            runs.finish(height * width);
        }
    });
    int64_t total = 0;
    for (const auto& lengths : found) total += static_cast<int64_t>(lengths.size());
    at::Tensor all = at::empty({total}, saliency.options().dtype(at::kInt));
    at::Tensor number = at::empty({masks}, saliency.options().dtype(at::kLong));
    auto* to = all.mutable_data_ptr<int32_t>();
    for (int64_t k = 0; k < masks; ++k) {
        number.mutable_data_ptr<int64_t>()[k] = static_cast<int64_t>(found[k].size());
        to = std::copy(found[k].begin(), found[k].end(), to);
    }
    return {all, number};
}

std::tuple<at::Tensor, at::Tensor> compress_runs(const at::Tensor& lengths, const at::Tensor& number) {
    check_cpu("lengths", lengths);
    check_shape("lengths", lengths, {-1});
    check_index("lengths", lengths);
    check_cpu("number", number);
    check_shape("number", number, {-1});
    check_index("number", number);
    const at::Tensor runs = lengths.to(at::kLong).contiguous(), of_mask = number.to(at::kLong).contiguous();
    check_values("number", of_mask, 0, runs.numel());
    const int64_t masks = of_mask.numel();
    const int64_t* value = runs.const_data_ptr<int64_t>();
    const int64_t* values = of_mask.const_data_ptr<int64_t>();
    int64_t total = 0;
    for (int64_t k = 0; k < masks; ++k) total += values[k];
    TORCH_CHECK_VALUE(total == runs.numel(), "number: expected a sum of ", runs.numel(), ", got ", total);
    std::vector<uint8_t> text;
    text.reserve(3 * total);
    at::Tensor characters = at::empty({masks}, of_mask.options());
    for (int64_t k = 0; k < masks; value += values[k], ++k) {
        const auto before = static_cast<int64_t>(text.size());
        for (int64_t i = 0; i < values[k]; ++i) {
            int64_t rest = i > 2 ? value[i] - value[i - 2] : value[i];
            for (bool more = true; more;) {
                const int64_t group = rest & 0x1f;
                rest >>= 5;
                more = (group & 0x10) ? rest != -1 : rest != 0;
                text.push_back(static_cast<uint8_t>((more ? group | 0x20 : group) + 48));
            }
        }
        characters.mutable_data_ptr<int64_t>()[k] = static_cast<int64_t>(text.size()) - before;
    }
    at::Tensor all = at::empty({static_cast<int64_t>(text.size())}, of_mask.options().dtype(at::kByte));
    if (!text.empty()) std::memcpy(all.mutable_data_ptr<uint8_t>(), text.data(), text.size());
    return {all, characters};
}

}  // namespace sp_fast
