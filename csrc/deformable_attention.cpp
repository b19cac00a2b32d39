// Forward: each query lists the cells that a head reads, with their shares, and sums their rows. Backward:
// each head of an image belongs to one thread, so that no two threads add to the same row, and results do not
// depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "ops.h"
#include "vectors.h"

namespace sp_fast {
namespace {

// Number of queries below which another thread costs more than it saves.
constexpr int64_t kGrain = 32;

struct Level {
    int64_t height, width, start;
};

struct Sizes {
    int64_t batch, keys, heads, depth, queries, points;
    std::vector<Level> levels;
    // Points of one query and head.
    int64_t all_points() const { return static_cast<int64_t>(levels.size()) * points; }
};

// One of the four cells around a point: its row in the image's values, and its share of the point's value.
template <typename T>
struct Cell {
    int64_t row;
    T share;
};

// The four cells around a point: `first` is the row of the upper left one, if it lies inside the map.
template <typename T>
struct Place {
    int64_t first;
    bool above, below, left, right;  // whether this row or column of cells lies inside the map
    T x, y;                          // offset from the centre of the upper left cell, in [0, 1)
};

// Finds the cells around a point, given in units of the map's sides; false if all lie outside or it is NaN.
template <typename T>
SP_FAST_INLINE bool locate(const Level& level, const T* location, Place<T>& place) {
    const T x = location[0] * static_cast<T>(level.width) - T(0.5);
    const T y = location[1] * static_cast<T>(level.height) - T(0.5);
    if (!(x > -1 && y > -1 && x < static_cast<T>(level.width) && y < static_cast<T>(level.height))) {
        return false;
    }
    // Conversion truncates, which is not rounding down between -1 and 0.
    const int64_t column = x < 0 ? -1 : static_cast<int64_t>(x);
    const int64_t row = y < 0 ? -1 : static_cast<int64_t>(y);
    place.first = level.start + row * level.width + column;
    place.above = row >= 0;
    place.below = row + 1 < level.height;
    place.left = column >= 0;
    place.right = column + 1 < level.width;
    place.x = x - static_cast<T>(column);
    place.y = y - static_cast<T>(row);
    return true;
}

// Lists the cells that one query and head reads, and returns their number.
template <typename T>
SP_FAST_INLINE int64_t list_cells(const Sizes& sizes, const T* locations, const T* weights, Cell<T>* cells) {
    int64_t number = 0;
    for (const Level& level : sizes.levels) {
        for (int64_t p = 0; p < sizes.points; ++p, locations += 2, ++weights) {
            Place<T> at;
            if (!locate(level, locations, at)) continue;
            const T upper = *weights * (1 - at.y), lower = *weights * at.y;
            if (at.above && at.left) cells[number++] = {at.first, upper * (1 - at.x)};
            if (at.above && at.right) cells[number++] = {at.first + 1, upper * at.x};
            if (at.below && at.left) cells[number++] = {at.first + level.width, lower * (1 - at.x)};
            if (at.below && at.right) cells[number++] = {at.first + level.width + 1, lower * at.x};
        }
    }
    return number;
}

// Sum of the cells' rows, kVectors vectors of channels at a time.
template <typename T, int64_t kVectors>
SP_FAST_INLINE void sum_vectors(const T* value, int64_t stride, const Cell<T>* cells, int64_t number,
                                T* out) {
    typename Lanes<T>::Vector sums[kVectors] = {};
    for (int64_t i = 0; i < number; ++i) {
        const T* from = value + cells[i].row * stride;
        const T share = cells[i].share;
#pragma GCC unroll 4
        for (int64_t k = 0; k < kVectors; ++k) {
            typename Lanes<T>::Vector row;
            load(row, from + k * Lanes<T>::kSize);
            sums[k] += share * row;
        }
    }
    std::memcpy(out, sums, sizeof(sums));
}

template <typename T>
SP_FAST_INLINE void sum_rows(const T* value, int64_t stride, int64_t depth, const Cell<T>* cells,
                             int64_t number, T* out) {
    constexpr int64_t kSize = Lanes<T>::kSize;
    int64_t d = 0;
    for (; d + 4 * kSize <= depth; d += 4 * kSize) {
        sum_vectors<T, 4>(value + d, stride, cells, number, out + d);
    }
    for (; d + kSize <= depth; d += kSize) sum_vectors<T, 1>(value + d, stride, cells, number, out + d);
    std::fill(out + d, out + depth, T(0));
    for (int64_t i = 0; d < depth && i < number; ++i) {
        const T* from = value + cells[i].row * stride;
        for (int64_t c = d; c < depth; ++c) out[c] += cells[i].share * from[c];
    }
}

// Rows [begin, end) of the result, of all images' queries.
template <typename T>
SP_FAST_INLINE void attend_queries(const Sizes& sizes, const T* value, const T* locations, const T* weights,
                                   int64_t begin, int64_t end, Cell<T>* cells, T* out) {
    const int64_t stride = sizes.heads * sizes.depth, points = sizes.all_points();
    for (int64_t q = begin; q < end; ++q) {
        const T* image = value + q / sizes.queries * sizes.keys * stride;
        for (int64_t m = 0; m < sizes.heads; ++m) {
            const int64_t at = q * sizes.heads + m;
            const int64_t number =
                list_cells(sizes, locations + 2 * at * points, weights + at * points, cells);
            sum_rows(image + m * sizes.depth, stride, sizes.depth, cells, number, out + at * sizes.depth);
        }
    }
}

// Adds share * grad to the gradient of the row that starts at `at`, and returns grad . row.
template <typename T>
SP_FAST_INLINE T visit(const T* grad, const T* value, T* grad_value, int64_t at, T share, int64_t depth) {
    const T* row = value + at;
    T* grad_row = grad_value + at;
    constexpr int64_t kSize = Lanes<T>::kSize;
    typename Lanes<T>::Vector sum = {}, x, y, z;
    int64_t d = 0;
    for (; d + kSize <= depth; d += kSize) {
        load(x, grad + d);
        load(y, row + d);
        load(z, grad_row + d);
        sum += x * y;
        z += share * x;
        std::memcpy(grad_row + d, &z, sizeof(z));
    }
    T rest = 0;
    for (; d < depth; ++d) {
        rest += grad[d] * row[d];
        grad_row[d] += share * grad[d];
    }
    return sum_lanes<T>(sum) + rest;
}

// The gradients of one head of one image; `value` and `grad_value` point to the head's first row.
template <typename T>
SP_FAST_INLINE void spread_head(const Sizes& sizes, const T* grad, const T* value, const T* locations,
                                const T* weights, T* grad_value, T* grad_locations, T* grad_weights) {
    const int64_t stride = sizes.heads * sizes.depth, depth = sizes.depth, points = sizes.all_points();
    for (int64_t q = 0; q < sizes.queries; ++q) {
        const T* g = grad + q * stride;
        int64_t i = q * sizes.heads * points;
        for (const Level& level : sizes.levels) {
            for (int64_t p = 0; p < sizes.points; ++p, ++i) {
                Place<T> at;
                grad_locations[2 * i] = grad_locations[2 * i + 1] = grad_weights[i] = 0;
                if (!locate(level, locations + 2 * i, at)) continue;
                const T right = at.x, lower = at.y, left = 1 - right, upper = 1 - lower, w = weights[i];
                const int64_t row = at.first * stride, below = row + level.width * stride;
                // Products of the gradient with the rows of the upper and lower, left and right cells.
                T ul = 0, ur = 0, ll = 0, lr = 0;
                if (at.above && at.left) ul = visit(g, value, grad_value, row, w * upper * left, depth);
                if (at.above && at.right) {
                    ur = visit(g, value, grad_value, row + stride, w * upper * right, depth);
                }
                if (at.below && at.left) ll = visit(g, value, grad_value, below, w * lower * left, depth);
                if (at.below && at.right) {
                    lr = visit(g, value, grad_value, below + stride, w * lower * right, depth);
                }
                grad_weights[i] = upper * (left * ul + right * ur) + lower * (left * ll + right * lr);
                const T by_x = upper * (ur - ul) + lower * (lr - ll),
                        by_y = left * (ll - ul) + right * (lr - ur);
                grad_locations[2 * i] = w * static_cast<T>(level.width) * by_x;
                grad_locations[2 * i + 1] = w * static_cast<T>(level.height) * by_y;
            }
        }
    }
}

SP_FAST_CLONES void attend(const Sizes& sizes, const float* value, const float* locations,
                           const float* weights, int64_t begin, int64_t end, Cell<float>* cells, float* out) {
    attend_queries(sizes, value, locations, weights, begin, end, cells, out);
}
SP_FAST_CLONES void attend(const Sizes& sizes, const double* value, const double* locations,
                           const double* weights, int64_t begin, int64_t end, Cell<double>* cells,
                           double* out) {
    attend_queries(sizes, value, locations, weights, begin, end, cells, out);
}
SP_FAST_CLONES void spread(const Sizes& sizes, const float* grad, const float* value, const float* locations,
                           const float* weights, float* grad_value, float* grad_locations,
                           float* grad_weights) {
    spread_head(sizes, grad, value, locations, weights, grad_value, grad_locations, grad_weights);
}
SP_FAST_CLONES void spread(const Sizes& sizes, const double* grad, const double* value,
                           const double* locations, const double* weights, double* grad_value,
                           double* grad_locations, double* grad_weights) {
    spread_head(sizes, grad, value, locations, weights, grad_value, grad_locations, grad_weights);
}

Sizes check_arguments(const at::Tensor& value, const at::Tensor& sizes, const at::Tensor& locations,
                      const at::Tensor& weights) {
    check_cpu("value", value);
    check_shape("value", value, {-1, -1, -1, -1});
    check_real("value", value);
    check_cpu("sizes", sizes);
    check_shape("sizes", sizes, {-1, 2});
    check_index("sizes", sizes);
    check_cpu("locations", locations);
    check_shape("locations", locations, {value.size(0), -1, value.size(2), sizes.size(0), -1, 2});
    check_cpu("weights", weights);
    check_shape("weights", weights,
                {value.size(0), locations.size(1), value.size(2), sizes.size(0), locations.size(4)});
    for (const auto* one : {&locations, &weights}) {
        TORCH_CHECK_TYPE(one->scalar_type() == accumulate_type(value),
                         one == &weights ? "weights" : "locations", ": expected dtype ",
                         accumulate_type(value), ", got ", one->scalar_type());
    }
    Sizes found{
        value.size(0), value.size(1), value.size(2), value.size(3), locations.size(1), locations.size(4), {}};
    const at::Tensor rows = sizes.to(at::kLong).contiguous();
    const int64_t* sides = rows.const_data_ptr<int64_t>();
    int64_t start = 0;
    for (int64_t l = 0; l < rows.size(0); ++l, sides += 2) {
        // Compared by division, since the product of two large sides overflows.
        TORCH_CHECK_VALUE(sides[0] >= 1 && sides[1] >= 1 && sides[0] <= (found.keys - start) / sides[1],
                          "sizes: expected heights and widths of at least 1, and ", found.keys,
                          " cells in all, as in value; got ", sides[0], " x ", sides[1], " at level ", l);
        found.levels.push_back({sides[0], sides[1], start});
        start += sides[0] * sides[1];
    }
    TORCH_CHECK_VALUE(start == found.keys, "sizes: expected ", found.keys, " cells in all, as in value, got ",
                      start);
    return found;
}

}  // namespace

at::Tensor deformable_attention(const at::Tensor& value, const at::Tensor& sizes, const at::Tensor& locations,
                                const at::Tensor& weights) {
    const Sizes found = check_arguments(value, sizes, locations, weights);
    const at::Tensor values = value.to(accumulate_type(value)).contiguous();
    const at::Tensor places = locations.contiguous(), shares = weights.contiguous();
    at::Tensor result = at::empty({found.batch, found.queries, found.heads * found.depth}, values.options());
    AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "deformable_attention", [&] {
        const scalar_t* value_data = values.const_data_ptr<scalar_t>();
        const scalar_t* place_data = places.const_data_ptr<scalar_t>();
        const scalar_t* share_data = shares.const_data_ptr<scalar_t>();
        scalar_t* result_data = result.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, found.batch * found.queries, kGrain, [&](int64_t begin, int64_t end) {
            std::vector<Cell<scalar_t>> cells(4 * found.all_points());
            attend(found, value_data, place_data, share_data, begin, end, cells.data(), result_data);
        });
    });
    return result.to(value.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> deformable_attention_backward(const at::Tensor& grad,
                                                                             const at::Tensor& value,
                                                                             const at::Tensor& sizes,
                                                                             const at::Tensor& locations,
                                                                             const at::Tensor& weights) {
    const Sizes found = check_arguments(value, sizes, locations, weights);
    check_cpu("grad", grad);
    check_shape("grad", grad, {found.batch, found.queries, found.heads * found.depth});
    check_real("grad", grad);
    const at::Tensor values = value.to(accumulate_type(value)).contiguous();
    const at::Tensor given = grad.to(values.scalar_type()).contiguous();
    const at::Tensor places = locations.contiguous(), shares = weights.contiguous();
    at::Tensor grad_value = at::zeros(values.sizes(), values.options());
    at::Tensor grad_locations = at::empty(places.sizes(), places.options());
    at::Tensor grad_weights = at::empty(shares.sizes(), shares.options());
    AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "deformable_attention_backward", [&] {
        const scalar_t* given_data = given.const_data_ptr<scalar_t>();
        const scalar_t* value_data = values.const_data_ptr<scalar_t>();
        const scalar_t* place_data = places.const_data_ptr<scalar_t>();
        const scalar_t* share_data = shares.const_data_ptr<scalar_t>();
        scalar_t* grad_value_data = grad_value.mutable_data_ptr<scalar_t>();
        scalar_t* grad_place_data = grad_locations.mutable_data_ptr<scalar_t>();
        scalar_t* grad_share_data = grad_weights.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, found.batch * found.heads, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t b = i / found.heads, m = i % found.heads;
                const int64_t row = (b * found.keys * found.heads + m) * found.depth;
                const int64_t query = b * found.queries * found.heads + m, point = query * found.all_points();
                spread(found, given_data + query * found.depth, value_data + row, place_data + 2 * point,
                       share_data + point, grad_value_data + row, grad_place_data + 2 * point,
                       grad_share_data + point);
            }
        });
    });
    return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace sp_fast
