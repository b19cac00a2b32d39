#include "packed_masks.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "mask_shapes.h"
#include "ops.h"
#include "vectors.h"

namespace sp_fast {
namespace {

SP_FAST_CLONES int64_t count_common(const uint64_t* a, const uint64_t* b, int64_t n) {
    int64_t common = 0;
    for (int64_t i = 0; i < n; ++i) common += __builtin_popcountll(a[i] & b[i]);
    return common;
}

void unpack_word(uint32_t word, bool* cells) {
    for (int64_t k = 0; k < 4; ++k) {
        // Bit i of the byte stays in byte i, and becomes 0x80 there.
        const uint64_t bits = (word >> 8 * k & 0xff) * 0x0101010101010101ULL & 0x8040201008040201ULL;
        const uint64_t bytes = (bits + 0x7f7f7f7f7f7f7f7fULL) >> 7 & 0x0101010101010101ULL;
        std::memcpy(cells + 8 * k, &bytes, sizeof(bytes));
    }
}

// Minimum number of masks per thread.
constexpr int64_t kGrain = 64;

struct Box {
    int32_t x0 = INT32_MAX, y0 = INT32_MAX, x1 = 0, y1 = 0;
};

Box box_of(const int32_t* words, int64_t number, int64_t width) {
    Box box;
    for (int64_t j = 0; j < number; ++j) {
        uint32_t bits = static_cast<uint32_t>(words[j]);
        // One iteration for each row of the mask that the word covers.
        while (bits != 0) {
            const int64_t cell = j * 32 + __builtin_ctz(bits);
            const int64_t y = cell / width, end = (y + 1) * width - j * 32;
            const uint32_t here = end < 32 ? bits & ((uint32_t{1} << end) - 1) : bits;
            bits ^= here;
            const int64_t last = j * 32 + 31 - __builtin_clz(here);
            box.x0 = std::min(box.x0, static_cast<int32_t>(cell - y * width));
            box.x1 = std::max(box.x1, static_cast<int32_t>(last + 1 - y * width));
            box.y0 = std::min(box.y0, static_cast<int32_t>(y));
            box.y1 = static_cast<int32_t>(y + 1);
        }
    }
    return box.x1 > 0 ? box : Box{0, 0, 0, 0};
}

}  // namespace

void pack_words(const uint8_t* inside, int64_t words, int32_t* out) {
    for (int64_t j = 0; j < words; ++j) {
        uint32_t word = 0;
        for (int64_t k = 0; k < 4; ++k) {
            uint64_t bytes;
            std::memcpy(&bytes, inside + 32 * j + 8 * k, sizeof(bytes));
            // The product moves byte i to bit 56 + i.
            word |= static_cast<uint32_t>((bytes * 0x0102040810204080ULL) >> 56) << (8 * k);
        }
        std::memcpy(out + j, &word, sizeof(word));
    }
}

at::Tensor pack_masks(const at::Tensor& masks) {
    check_cpu("masks", masks);
    const MaskShape shape = shape_of_masks(masks);
    const at::Tensor cells = masks.contiguous();
    at::Tensor packed = at::empty(shape.with(shape.words()), masks.options().dtype(at::kInt));
    const auto* from = reinterpret_cast<const uint8_t*>(cells.const_data_ptr<bool>());
    int32_t* to = packed.mutable_data_ptr<int32_t>();
    at::parallel_for(0, shape.number, kGrain, [&](int64_t begin, int64_t end) {
        std::vector<uint8_t> row(shape.words() * 32, 0);
        for (int64_t m = begin; m < end; ++m) {
            // A bool made from other bytes, as by view(torch.bool), may be any number.
            const auto* mask = from + m * shape.cells();
            std::transform(mask, mask + shape.cells(), row.data(), [](uint8_t cell) { return cell != 0; });
            pack_words(row.data(), shape.words(), to + m * shape.words());
        }
    });
    return packed;
}

at::Tensor unpack_masks(const at::Tensor& words, int64_t height, int64_t width) {
    check_cpu("words", words);
    const MaskShape shape = shape_of_words(words, height, width);
    const at::Tensor bits = words.contiguous();
    at::Tensor masks = at::empty(shape.with(height, width), words.options().dtype(at::kBool));
    const int32_t* from = bits.const_data_ptr<int32_t>();
    bool* to = masks.mutable_data_ptr<bool>();
    at::parallel_for(0, shape.number, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            const int32_t* row = from + m * shape.words();
            bool* cells = to + m * shape.cells();
            const int64_t whole = shape.cells() / 32;
            for (int64_t j = 0; j < whole; ++j) unpack_word(static_cast<uint32_t>(row[j]), cells + 32 * j);
            for (int64_t i = 32 * whole; i < shape.cells(); ++i) cells[i] = row[whole] >> i % 32 & 1;
        }
    });
    return masks;
}

at::Tensor mask_areas(const at::Tensor& words) {
    check_cpu("words", words);
    check_words(words);
    const at::Tensor bits = words.contiguous();
    at::Tensor areas = at::empty(words.sizes().slice(0, words.dim() - 1), words.options());
    const int64_t size = words.size(-1);
    const int32_t* from = bits.const_data_ptr<int32_t>();
    int32_t* to = areas.mutable_data_ptr<int32_t>();
    at::parallel_for(0, areas.numel(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            to[m] = 0;
            for (int64_t j = 0; j < size; ++j) to[m] += __builtin_popcount(from[m * size + j]);
        }
    });
    return areas;
}

at::Tensor mask_boxes(const at::Tensor& words, int64_t height, int64_t width) {
    check_cpu("words", words);
    const MaskShape shape = shape_of_words(words, height, width);
    const at::Tensor bits = words.contiguous();
    at::Tensor boxes = at::empty(shape.with(4), words.options());
    const int32_t* from = bits.const_data_ptr<int32_t>();
    int32_t* to = boxes.mutable_data_ptr<int32_t>();
    at::parallel_for(0, shape.number, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            const Box box = box_of(from + m * shape.words(), shape.words(), width);
            std::memcpy(to + 4 * m, &box, sizeof(box));
        }
    });
    return boxes;
}

int64_t ImageMasks::intersection(int64_t a, int64_t b) const {
    return count_common(cells_.data() + a * size_, cells_.data() + b * size_, size_);
}

}  // namespace sp_fast
