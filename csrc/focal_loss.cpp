// Each class of an image belongs to one thread, which reads its map row by row.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "mask_sums.h"
#include "upsampled_maps.h"

namespace sp_fast {
namespace {

// Classes [first, first + number) of one image: maps [number, h, w] and labels [2 h, 2 w].
template <typename T>
struct ImageClasses {
    const T* logits;
    const int64_t* labels;
    int64_t first, number, height, width;
    T alpha;
};

// Scratch of a quad of labels, a quad of logits and a padded row.
template <typename T>
struct Scratch {
    std::vector<T> data;
    T *labels, *quad, *padded;
    explicit Scratch(int64_t width)
        : data(9 * width + 2), labels(data.data()), quad(labels + 4 * width), padded(quad + 4 * width) {}
};

template <typename T>
SP_FAST_INLINE void sum_classes(const ImageClasses<T>& image, double* losses) {
    const int64_t width = image.width, cells = 4 * width;
    Scratch<T> scratch(width);
    const T* labels = scratch.labels;
    T* quad = scratch.quad;
    for (int64_t y = 0; y < image.height; ++y) {
        read_quad(image.labels, y, width, T(1), scratch.labels);
        for (int64_t k = 0; k < image.number; ++k) {
            const T* map = image.logits + k * image.height * width;
            upsample_row(ThreeRows<const T>(map, y, image.height, width), width, scratch.padded, quad);
            const T label = static_cast<T>(image.first + k);
            for (int64_t i = 0; i < cells; ++i) {
                const bool positive = labels[i] == label;
                const T z = positive ? -quad[i] : quad[i], e = exp_of_negative(-std::abs(z));
                const T p = (z >= 0 ? T(1) : e) / (1 + e);
                const T softplus = (z > 0 ? z : T(0)) + log_of_one_plus(e);
                quad[i] = (positive ? image.alpha : 1 - image.alpha) * p * p * softplus;
            }
            losses[k] += sum(quad, cells);
        }
    }
}

template <typename T>
SP_FAST_INLINE void add_class_gradients(const ImageClasses<T>& image, T scale, T* grad) {
    const int64_t width = image.width, cells = 4 * width, size = image.height * width;
    Scratch<T> scratch(width);
    const T* labels = scratch.labels;
    T* quad = scratch.quad;
    for (int64_t y = 0; y < image.height; ++y) {
        read_quad(image.labels, y, width, T(1), scratch.labels);
        for (int64_t k = 0; k < image.number; ++k) {
            const ThreeRows<const T> rows(image.logits + k * size, y, image.height, width);
            upsample_row(rows, width, scratch.padded, quad);
            const T label = static_cast<T>(image.first + k);
            for (int64_t i = 0; i < cells; ++i) {
                const bool positive = labels[i] == label;
                const T z = positive ? -quad[i] : quad[i], e = exp_of_negative(-std::abs(z));
                const T p = (z >= 0 ? T(1) : e) / (1 + e);
                const T softplus = (z > 0 ? z : T(0)) + log_of_one_plus(e);
                const T weight = positive ? -image.alpha : 1 - image.alpha;
                quad[i] = scale * weight * (p * p) * (2 * (1 - p) * softplus + p);
            }
            add_to_rows(quad, width, scratch.padded, ThreeRows<T>(grad + k * size, y, image.height, width));
        }
    }
}

#define SP_FAST_FOCAL(T)                                                                 \
    SP_FAST_CLONES void sum_image(const ImageClasses<T>& image, double* losses) {        \
        sum_classes(image, losses);                                                      \
    }                                                                                    \
    SP_FAST_CLONES void image_gradient(const ImageClasses<T>& image, T scale, T* grad) { \
        add_class_gradients(image, scale, grad);                                         \
    }
SP_FAST_FOCAL(float)
SP_FAST_FOCAL(double)
#undef SP_FAST_FOCAL

// Calls `function(image, i)` for the classes of every image, in parallel; `i` counts classes over images.
template <typename T, typename Function>
void for_each_image(const at::Tensor& logits, const at::Tensor& labels, double alpha,
                    const Function& function) {
    const int64_t classes = logits.size(1), height = logits.size(2), width = logits.size(3);
    const T* data = logits.const_data_ptr<T>();
    const int64_t* label = labels.const_data_ptr<int64_t>();
    at::parallel_for(0, logits.size(0) * classes, 4, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t b = begin / classes, until = std::min(end, (b + 1) * classes);
            function(ImageClasses<T>{data + begin * height * width, label + b * 4 * height * width,
                                     begin % classes, until - begin, height, width, static_cast<T>(alpha)},
                     begin);
            begin = until;
        }
    });
}

struct Problem {
    at::Tensor logits, labels;
};

Problem check_problem(const at::Tensor& logits, const at::Tensor& labels) {
    check_cpu("logits", logits);
    check_cpu("labels", labels);
    check_real("logits", logits);
    check_index("labels", labels);
    check_shape("logits", logits, {-1, -1, -1, -1});
    check_map("logits", logits);
    check_shape("labels", labels, {logits.size(0), 2 * logits.size(2), 2 * logits.size(3)});
    return {logits.to(accumulate_type(logits)).contiguous(), labels.to(at::kLong).contiguous()};
}

}  // namespace

at::Tensor upsampled_focal_loss(const at::Tensor& logits, const at::Tensor& labels, double alpha) {
    const Problem problem = check_problem(logits, labels);
    std::vector<double> losses(logits.size(0) * logits.size(1), 0);
    AT_DISPATCH_FLOATING_TYPES(problem.logits.scalar_type(), "upsampled_focal_loss", [&] {
        for_each_image<scalar_t>(
            problem.logits, problem.labels, alpha,
            [&](const ImageClasses<scalar_t>& image, int64_t i) { sum_image(image, losses.data() + i); });
    });
    double total = 0;
    for (const double loss : losses) total += loss;
    return at::empty({}, problem.logits.options()).fill_(total);
}

at::Tensor upsampled_focal_loss_backward(const at::Tensor& grad, const at::Tensor& logits,
                                         const at::Tensor& labels, double alpha) {
    const Problem problem = check_problem(logits, labels);
    check_cpu("grad", grad);
    check_shape("grad", grad, {});
    const double scale = grad.to(at::kDouble).item<double>();
    at::Tensor result = at::zeros(logits.sizes(), problem.logits.options());
    AT_DISPATCH_FLOATING_TYPES(problem.logits.scalar_type(), "upsampled_focal_loss_backward", [&] {
        scalar_t* out = result.mutable_data_ptr<scalar_t>();
        const int64_t size = logits.size(2) * logits.size(3);
        for_each_image<scalar_t>(problem.logits, problem.labels, alpha,
                                 [&](const ImageClasses<scalar_t>& image, int64_t i) {
                                     image_gradient(image, static_cast<scalar_t>(scale), out + i * size);
                                 });
    });
    return result.to(logits.scalar_type());
}

}  // namespace sp_fast
