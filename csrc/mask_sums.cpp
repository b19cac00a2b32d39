// Each map, or pair of map and target, belongs to one thread and is read row by row. Sums of a row are in the
// dtype of the logits, sums of rows in fp64, so results do not depend on the number of threads.
#include "mask_sums.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "upsampled_maps.h"

namespace sp_fast {
namespace {

// The columns [begin, end) of a quad outside which it is 0.
struct Span {
    int64_t begin, end;
};

template <typename T>
SP_FAST_INLINE Span span_of(const T* quad, int64_t width) {
    const auto empty = [&](int64_t x) {
        return quad[x] == 0 && quad[width + x] == 0 && quad[2 * width + x] == 0 && quad[3 * width + x] == 0;
    };
    Span span{0, width};
    while (span.begin < width && empty(span.begin)) ++span.begin;
    while (span.end > span.begin && empty(span.end - 1)) --span.end;
    return span;
}

// Sums of the maps [number, h, w] of one image: with each of the targets, and of p and p^2.
template <typename T>
struct ImageSums {
    const T* logits;
    int64_t number, height, width, targets;
    double *overlap, *area, *squares;
};

template <typename T, typename Cell>
SP_FAST_INLINE void sum_image(const ImageSums<T>& image, const Cell* masks, T unit) {
    const int64_t width = image.width, size = image.height * width, cells = 4 * width;
    std::vector<T> scratch(width + 2 + cells * (1 + image.targets));
    std::vector<Span> spans(image.targets);
    T* padded = scratch.data();
    T* p = padded + width + 2;
    T* wanted = p + cells;
    for (int64_t y = 0; y < image.height; ++y) {
        for (int64_t g = 0; g < image.targets; ++g) {
            read_quad(masks + g * 4 * size, y, width, unit, wanted + g * cells);
            spans[g] = span_of(wanted + g * cells, width);
        }
        for (int64_t n = 0; n < image.number; ++n) {
            upsample_row(ThreeRows<const T>(image.logits + n * size, y, image.height, width), width, padded,
                         p);
            for (int64_t i = 0; i < cells; ++i) p[i] = sigmoid(p[i]);
            image.area[n] += sum(p, cells);
            image.squares[n] += dot(p, p, cells);
            for (int64_t g = 0; g < image.targets; ++g) {
                const auto [begin, end] = spans[g];
                if (begin == end) continue;
                const T* target = wanted + g * cells;
                T inside = 0;
                for (int64_t k = begin; k < cells; k += width) inside += dot(p + k, target + k, end - begin);
                image.overlap[n * image.targets + g] += inside;
            }
        }
    }
}

// Area and squares of one target [2 h, 2 w].
struct TargetSums {
    double area = 0, squares = 0;
};

template <typename T, typename Cell>
SP_FAST_INLINE TargetSums sum_cells_of_target(const Cell* mask, int64_t height, int64_t width, T unit) {
    std::vector<T> quad(4 * width);
    TargetSums sums;
    for (int64_t y = 0; y < height; ++y) {
        read_quad(mask, y, width, unit, quad.data());
        sums.area += sum(quad.data(), 4 * width);
        sums.squares += dot(quad.data(), quad.data(), 4 * width);
    }
    return sums;
}

// One map [h, w], its target [2 h, 2 w], and scratch of Pair::scratch_size(width).
template <typename T, typename Cell>
struct Pair {
    const T* logits;
    const Cell* mask;
    int64_t height, width;
    T unit;
    T* scratch;

    static int64_t scratch_size(int64_t width) { return width + 2 + 3 * 4 * width; }
};

struct PairSums {
    double cross_entropy = 0, overlap = 0, squares = 0, target_squares = 0;
};

template <typename T, typename Cell>
SP_FAST_INLINE PairSums sum_cells(const Pair<T, Cell>& pair) {
    const int64_t width = pair.width, cells = 4 * width;
    T* padded = pair.scratch;
    T* p = padded + width + 2;
    T* wanted = p + cells;
    T* entropy = wanted + cells;
    PairSums sums;
    for (int64_t y = 0; y < pair.height; ++y) {
        upsample_row(ThreeRows<const T>(pair.logits, y, pair.height, width), width, padded, p);
        read_quad(pair.mask, y, width, pair.unit, wanted);
        for (int64_t i = 0; i < cells; ++i) {
            const T x = p[i], e = exp_of_negative(-std::abs(x));
            p[i] = (x >= 0 ? T(1) : e) / (1 + e);
            entropy[i] = (x > 0 ? x : T(0)) - x * wanted[i] + log_of_one_plus(e);
        }
        sums.cross_entropy += sum(entropy, cells);
        sums.overlap += dot(p, wanted, cells);
        sums.squares += dot(p, p, cells);
        sums.target_squares += dot(wanted, wanted, cells);
    }
    return sums;
}

// Weights of the gradients of cross-entropy, overlap and squares.
template <typename T>
struct Weights {
    T cross_entropy, overlap, squares;
};

template <typename T, typename Cell>
SP_FAST_INLINE void add_gradient(const Pair<T, Cell>& pair, const Weights<T>& weights, T* grad) {
    const int64_t width = pair.width, cells = 4 * width;
    const auto [of_entropy, of_overlap, of_squares] = weights;
    T* padded = pair.scratch;
    T* p = padded + width + 2;
    T* wanted = p + cells;
    for (int64_t y = 0; y < pair.height; ++y) {
        upsample_row(ThreeRows<const T>(pair.logits, y, pair.height, width), width, padded, p);
        read_quad(pair.mask, y, width, pair.unit, wanted);
        for (int64_t i = 0; i < cells; ++i) {
            const T q = sigmoid(p[i]);
            p[i] = of_entropy * (q - wanted[i]) + q * (1 - q) * (of_overlap * wanted[i] + 2 * of_squares * q);
        }
        add_to_rows(p, width, padded, ThreeRows<T>(grad, y, pair.height, width));
    }
}

#define SP_FAST_SUMS(T, Cell)                                                                          \
    SP_FAST_CLONES void sum_maps(const ImageSums<T>& image, const Cell* masks, T unit) {               \
        sum_image(image, masks, unit);                                                                 \
    }                                                                                                  \
    SP_FAST_CLONES TargetSums sum_target(const Cell* mask, int64_t height, int64_t width, T unit) {    \
        return sum_cells_of_target(mask, height, width, unit);                                         \
    }                                                                                                  \
    SP_FAST_CLONES PairSums sum_pair(const Pair<T, Cell>& pair) { return sum_cells(pair); }            \
    SP_FAST_CLONES void pair_gradient(const Pair<T, Cell>& pair, const Weights<T>& weights, T* grad) { \
        add_gradient(pair, weights, grad);                                                             \
    }
SP_FAST_SUMS(float, float)
SP_FAST_SUMS(float, uint8_t)
SP_FAST_SUMS(double, double)
SP_FAST_SUMS(double, uint8_t)
#undef SP_FAST_SUMS

void check_masks(const at::Tensor& logits, const at::Tensor& masks) {
    check_cpu("logits", logits);
    check_cpu("masks", masks);
    check_real("logits", logits);
    if (masks.scalar_type() != at::kByte) check_real("masks", masks);
}

// The masks in the dtype of accumulation, or in uint8 as they are.
at::Tensor cells_of(const at::Tensor& masks, at::ScalarType accumulate) {
    return (masks.scalar_type() == at::kByte ? masks : masks.to(accumulate)).contiguous();
}

// Calls `function(pointer, unit)`; uint8 counts quarters.
template <typename T, typename Function>
void with_cells(const at::Tensor& masks, const Function& function) {
    if (masks.scalar_type() == at::kByte) {
        function(masks.const_data_ptr<uint8_t>(), T(0.25));
    } else {
        function(masks.const_data_ptr<T>(), T(1));
    }
}

// Calls `function(i, pair)` for every pair, in parallel.
template <typename T, typename Function>
void for_each_pair(const at::Tensor& logits, const at::Tensor& masks, const at::Tensor& row,
                   const Function& function) {
    const int64_t height = logits.size(1), width = logits.size(2), size = height * width;
    const int64_t* rows = row.const_data_ptr<int64_t>();
    const T* data = logits.const_data_ptr<T>();
    with_cells<T>(masks, [&](const auto* cells, T unit) {
        using Cell = std::remove_const_t<std::remove_pointer_t<decltype(cells)>>;
        at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
            std::vector<T> scratch(Pair<T, Cell>::scratch_size(width));
            for (int64_t i = begin; i < end; ++i) {
                function(i, Pair<T, Cell>{data + i * size, cells + rows[i] * 4 * size, height, width, unit,
                                          scratch.data()});
            }
        });
    });
}

struct Pairs {
    at::Tensor logits, masks, row;
};

Pairs check_pairs(const at::Tensor& logits, const at::Tensor& masks, const at::Tensor& row) {
    check_masks(logits, masks);
    check_shape("logits", logits, {-1, -1, -1});
    check_map("logits", logits);
    check_shape("masks", masks, {-1, 2 * logits.size(1), 2 * logits.size(2)});
    check_cpu("row", row);
    check_index("row", row);
    check_shape("row", row, {logits.size(0)});
    const auto accumulate = accumulate_type(logits);
    const Pairs pairs{logits.to(accumulate).contiguous(), cells_of(masks, accumulate),
                      row.to(at::kLong).contiguous()};
    check_values("row", pairs.row, 0, masks.size(0) - 1);
    return pairs;
}

}  // namespace

MaskOverlaps mask_overlaps(const at::Tensor& logits, const at::Tensor& masks) {
    check_masks(logits, masks);
    check_shape("logits", logits, {-1, -1, -1, -1});
    check_map("logits", logits);
    const int64_t batch = logits.size(0), number = logits.size(1);
    const int64_t height = logits.size(2), width = logits.size(3), size = height * width;
    check_shape("masks", masks, {batch, -1, 2 * height, 2 * width});
    const int64_t targets = masks.size(1);
    const auto accumulate = accumulate_type(logits);
    const at::Tensor maps = logits.to(accumulate).contiguous(), wanted = cells_of(masks, accumulate);
    const auto zeros = [&](at::IntArrayRef shape) {
        return at::zeros(shape, logits.options().dtype(at::kDouble));
    };
    at::Tensor overlap = zeros({batch, number, targets}), area = zeros({batch, number}),
               squares = zeros({batch, number}), target_area = zeros({batch, targets}),
               target_squares = zeros({batch, targets});
    double* overlaps = overlap.mutable_data_ptr<double>();
    double* areas = area.mutable_data_ptr<double>();
    double* all_squares = squares.mutable_data_ptr<double>();
    double* target_areas = target_area.mutable_data_ptr<double>();
    double* all_target_squares = target_squares.mutable_data_ptr<double>();
    AT_DISPATCH_FLOATING_TYPES(accumulate, "mask_overlaps", [&] {
        const scalar_t* data = maps.const_data_ptr<scalar_t>();
        with_cells<scalar_t>(wanted, [&](const auto* cells, scalar_t unit) {
            // A range of maps of several images is cut at the images; each part reads the targets once.
            at::parallel_for(0, batch * number, 4, [&](int64_t begin, int64_t end) {
                while (begin < end) {
                    const int64_t b = begin / number, until = std::min(end, (b + 1) * number);
                    const ImageSums<scalar_t> image{data + begin * size,
                                                    until - begin,
                                                    height,
                                                    width,
                                                    targets,
                                                    overlaps + begin * targets,
                                                    areas + begin,
                                                    all_squares + begin};
                    sum_maps(image, cells + b * targets * 4 * size, unit);
                    begin = until;
                }
            });
            at::parallel_for(0, batch * targets, 4, [&](int64_t begin, int64_t end) {
                for (int64_t g = begin; g < end; ++g) {
                    const TargetSums sums = sum_target(cells + g * 4 * size, height, width, unit);
                    target_areas[g] = sums.area;
                    all_target_squares[g] = sums.squares;
                }
            });
        });
    });
    return {overlap.to(accumulate), area.to(accumulate), squares.to(accumulate), target_area.to(accumulate),
            target_squares.to(accumulate)};
}

MaskPairSums mask_pair_sums(const at::Tensor& logits, const at::Tensor& masks, const at::Tensor& row) {
    const Pairs pairs = check_pairs(logits, masks, row);
    const at::Tensor sums = at::empty({4, logits.size(0)}, pairs.logits.options());
    AT_DISPATCH_FLOATING_TYPES(pairs.logits.scalar_type(), "mask_pair_sums", [&] {
        scalar_t* out = sums.mutable_data_ptr<scalar_t>();
        const int64_t number = logits.size(0);
        for_each_pair<scalar_t>(pairs.logits, pairs.masks, pairs.row, [&](int64_t i, const auto& pair) {
            const PairSums of_pair = sum_pair(pair);
            out[i] = static_cast<scalar_t>(of_pair.cross_entropy);
            out[number + i] = static_cast<scalar_t>(of_pair.overlap);
            out[2 * number + i] = static_cast<scalar_t>(of_pair.squares);
            out[3 * number + i] = static_cast<scalar_t>(of_pair.target_squares);
        });
    });
    return {sums[0].clone(), sums[1].clone(), sums[2].clone(), sums[3].clone()};
}

at::Tensor mask_pair_sums_backward(const at::Tensor& grad_cross_entropy, const at::Tensor& grad_overlap,
                                   const at::Tensor& grad_squares, const at::Tensor& logits,
                                   const at::Tensor& masks, const at::Tensor& row) {
    const Pairs pairs = check_pairs(logits, masks, row);
    const auto weights_of = [&](const char* name, const at::Tensor& grad) {
        check_cpu(name, grad);
        check_shape(name, grad, {logits.size(0)});
        return grad.to(pairs.logits.scalar_type()).contiguous();
    };
    const at::Tensor of_entropy = weights_of("grad_cross_entropy", grad_cross_entropy);
    const at::Tensor of_overlap = weights_of("grad_overlap", grad_overlap);
    const at::Tensor of_squares = weights_of("grad_squares", grad_squares);
    at::Tensor grad = at::zeros(logits.sizes(), pairs.logits.options());
    AT_DISPATCH_FLOATING_TYPES(pairs.logits.scalar_type(), "mask_pair_sums_backward", [&] {
        scalar_t* out = grad.mutable_data_ptr<scalar_t>();
        const int64_t size = logits.size(1) * logits.size(2);
        for_each_pair<scalar_t>(pairs.logits, pairs.masks, pairs.row, [&](int64_t i, const auto& pair) {
            const Weights<scalar_t> weights{of_entropy.const_data_ptr<scalar_t>()[i],
                                            of_overlap.const_data_ptr<scalar_t>()[i],
                                            of_squares.const_data_ptr<scalar_t>()[i]};
            pair_gradient(pair, weights, out + i * size);
        });
    });
    return grad.to(logits.scalar_type());
}

}  // namespace sp_fast
